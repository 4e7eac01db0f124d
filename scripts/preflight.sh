#!/usr/bin/env bash
# Check everything `make setup` needs before anything is downloaded or built. Every missing thing
# is reported at once, on stderr, with its fix. On success the findings go to stdout, one KEY=value
# a line, for scripts/setup.sh. Exit status: 0 ready, 1 something is missing, 2 wrong usage.
#
# Reads: FLAVOUR (cpu, cuda, auto), PYTHON (an interpreter to use), CXX (a C++ compiler to use).
set -euo pipefail

flavour=${FLAVOUR:-auto}
venv=${VENV:-.venv}
# Measured: a CPU environment is 3.6 GB, and pip keeps the downloads while it unpacks them.
cpu_disk_mib=6144
cuda_disk_mib=24576
problems=0

problem() { # what is wrong, how to fix it
  problems=$((problems + 1))
  printf 'preflight: %s\n           fix: %s\n' "$1" "$2" >&2
}

note() { printf 'preflight: note: %s\n' "$1" >&2; }

have() { command -v "$1" >/dev/null 2>&1; }

case "$flavour" in
  cpu | cuda | auto) ;;
  *)
    printf 'preflight: FLAVOUR=%s: expected cpu, cuda or auto\n' "$flavour" >&2
    exit 2
    ;;
esac

# --- the machine -------------------------------------------------------------------------------
machine="$(uname -s) $(uname -m)"
if [[ $machine != "Linux x86_64" ]]; then
  problem "this is $machine; the locks in requirements/ are for Linux on x86_64" \
    "use a Linux x86_64 machine, or resolve your own set from pyproject.toml"
fi

# --- flavour -----------------------------------------------------------------------------------
gpus=0
if have nvidia-smi; then
  # nvidia-smi without a driver exits non-zero: then there is no GPU to use.
  gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU' || true)
fi
if [[ $flavour == auto ]]; then
  if ((gpus > 0)); then flavour=cuda; else flavour=cpu; fi
elif [[ $flavour == cuda ]] && ((gpus == 0)); then
  note "FLAVOUR=cuda, but nvidia-smi shows no GPU: it will install, and serve nothing on this machine"
fi

# --- Python ------------------------------------------------------------------------------------
# Prints the version if the interpreter will do, otherwise says why not and fails.
python_fits() {
  "$1" - <<'PY'
import sys
found = "%d.%d.%d" % sys.version_info[:3]
if sys.implementation.name != "cpython":
    sys.exit("is %s, not CPython" % sys.implementation.name)
if not (3, 11) <= sys.version_info[:2] < (3, 15):
    sys.exit("is Python %s" % found)
print(found)
PY
}

python=
version=
if [[ -n ${PYTHON:-} ]]; then
  candidates=("$PYTHON")
else
  candidates=(python3.11 python3.12 python3.13 python3.14 python3 python)
fi
seen=()
for candidate in "${candidates[@]}"; do
  have "$candidate" || continue
  if answer=$(python_fits "$candidate" 2>&1); then
    python=$(command -v "$candidate")
    version=$answer
    break
  fi
  # A version manager's stub answers with a page of advice: its first line is enough.
  seen+=("$candidate ${answer%%$'\n'*}")
done
if [[ -z $python ]]; then
  found="found: none of ${candidates[*]}"
  if ((${#seen[@]})); then found="found: $(printf '%s; ' "${seen[@]}")"; fi
  problem "no Python that fits (>=3.11,<3.15). ${found%; }" \
    "install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv python3.11-dev), or name it: make setup PYTHON=/path/to/python3.11"
else
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    problem "$python cannot make virtual environments (no venv or ensurepip)" \
      "apt-get install python${version%.*}-venv"
  fi
  headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  if [[ ! -e $headers/Python.h ]]; then
    problem "the C headers of $python are not there ($headers/Python.h)" \
      "apt-get install python${version%.*}-dev"
  fi
fi

# --- building ----------------------------------------------------------------------------------
cxx=${CXX:-}
if [[ -z $cxx ]]; then
  for candidate in g++ c++ clang++; do
    if have "$candidate"; then
      cxx=$candidate
      break
    fi
  done
fi
if [[ -z $cxx ]] || ! have "${cxx%% *}"; then
  problem "no C++ compiler (${cxx:-looked for g++, c++, clang++})" \
    "apt-get install g++, or name one: make setup CXX=/path/to/g++"
else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  cat >"$scratch/probe.cpp" <<'CPP'
#include <concepts>
#include <span>
template <std::integral T> T sum(std::span<const T> xs) { T s{}; for (T x : xs) s += x; return s; }
int main() { const int xs[] = {1, -1}; return sum(std::span<const int>(xs)); }
CPP
  # shellcheck disable=SC2086  # CXX may carry arguments, as make has it
  if ! why=$($cxx -std=c++20 "$scratch/probe.cpp" -o "$scratch/probe" 2>&1); then
    problem "$cxx does not build a C++20 program: ${why%%$'\n'*}" \
      "install g++ 11 or newer (apt-get install g++), or name one: make setup CXX=/path/to/g++"
  fi
fi
have make || problem "no make" "apt-get install make"
if [[ $flavour == cuda ]] && ! have nvcc && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
  note "no nvcc: the trainer's CUDA operators are not built (their PyTorch versions are used). To build them, install the CUDA toolkit and set CUDA_HOME"
fi

# --- room --------------------------------------------------------------------------------------
disk_mib=$cpu_disk_mib
[[ $flavour == cuda ]] && disk_mib=$cuda_disk_mib
if [[ ! -e $venv/.opsd-lock ]]; then
  free_mib=$(df -Pm . | awk 'NR == 2 { print $4 }')
  if ((free_mib < disk_mib)); then
    problem "$((free_mib / 1024)) GiB free here; the $flavour environment needs $((disk_mib / 1024)) GiB" \
      "free some space, or clone to a larger disk"
  fi
fi

# --- wanted by some tests only -----------------------------------------------------------------
postgres=
for bindir in "$(pg_config --bindir 2>/dev/null || true)" /usr/lib/postgresql/*/bin; do
  if [[ -n $bindir && -x $bindir/initdb && -x $bindir/postgres ]]; then postgres=$bindir; fi
done
if [[ -z $postgres ]]; then
  note "PostgreSQL's server programs (initdb, postgres) are not there; the tests that run on PostgreSQL need them: apt-get install postgresql"
fi

have bwrap || note "bubblewrap (bwrap) is not there; the python verifier runs code in its sandboxes and refuses without it: apt-get install bubblewrap"

if ((problems)); then
  printf 'preflight: %d problem(s); nothing was downloaded or changed\n' "$problems" >&2
  exit 1
fi
printf '%s\n' "FLAVOUR=$flavour" "PYTHON=$python" "PYTHON_VERSION=$version" "CXX=$cxx" "GPUS=$gpus"
