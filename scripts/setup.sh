#!/usr/bin/env bash
# Make .venv and everything in it (`make setup`). What is already there and still matches is kept,
# so a second run only checks. Reads FLAVOUR, PYTHON and CXX as scripts/preflight.sh does.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
start=$SECONDS
say() { printf 'setup: %s\n' "$*"; }
fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

findings=$(scripts/preflight.sh)
finding() { sed -n "s/^$1=//p" <<<"$findings"; }
flavour=$(finding FLAVOUR)
python=$(finding PYTHON)
version=$(finding PYTHON_VERSION)
CXX=$(finding CXX)
export CXX
say "flavour $flavour, Python $version ($python), $(finding GPUS) GPU(s)"

# --- the environment ---------------------------------------------------------------------------
locks=(requirements/"$flavour".lock requirements/dev.lock)
[[ $flavour == cpu ]] && locks=(requirements/torch-cpu.txt "${locks[@]}")
lock_stamp="$flavour $version $(cat "${locks[@]}" | sha256sum | cut -d' ' -f1)"

remake() {
  say "$1: making $venv anew"
  rm -rf "$venv"
}
if [[ -d $venv ]]; then
  # Empty when it does not run, or when an earlier run was interrupted before pip was in it.
  venv_version=$("$venv/bin/python" -c 'import pip, sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true)
  venv_flavour=$(cut -d" " -f1 "$venv/.opsd-lock" 2>/dev/null || echo "$flavour")
  if [[ $venv_version != "$version" ]]; then
    remake "$venv has Python ${venv_version:-that does not run}, not $version"
  elif [[ $venv_flavour != "$flavour" ]]; then
    # Both flavours install the import package vllm: one must be gone before the other comes.
    remake "$venv is for $venv_flavour"
  fi
fi
if [[ ! -d $venv ]]; then "$python" -m venv "$venv"; fi
# Build tools that pip starts (ninja, protoc's plugins) are looked up on PATH.
PATH="$PWD/$venv/bin:$PATH"
export PATH

# -qq: errors only. --no-deps: the lock is complete, nothing is resolved here. --no-compile: pip
# compiles on one core; compile_packages does it on all.
pip_install() {
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-input --no-deps --no-compile "$@"
}

install_torch_cpu() {
  pip_install -r requirements/torch-cpu.txt && return
  fail "pip did not find PyTorch's CPU build ($(grep '^torch' requirements/torch-cpu.txt)); its message is above." \
    "That build is not on the package index. Tell pip where PyTorch's CPU wheels are, and run make setup again:" \
    "  export PIP_EXTRA_INDEX_URL=<PyTorch's CPU wheel index>   (PyTorch's install page names it: Pip, Linux, CPU)" \
    "  export PIP_FIND_LINKS=<a folder that holds the torch wheel>   (without network)"
}

# An engine imports thousands of files. Without their byte code each start takes twice as long where
# nothing may be written beside them (a read-only venv, PYTHONDONTWRITEBYTECODE).
compile_packages() {
  local packages
  packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  # Left out: tests, and what is written for one later Python. A file that fails is no loss here.
  "$venv/bin/python" -m compileall -qq -j 0 -x '/tests?/|/py3[0-9]+_' "$packages" || say "not all of it compiles"
}

if [[ $(cat "$venv/.opsd-lock" 2>/dev/null || true) == "$lock_stamp" ]]; then
  say "packages match requirements/$flavour.lock"
else
  rm -f "$venv/.opsd-lock"
  say "installing requirements/$flavour.lock and dev.lock (a few minutes the first time)"
  [[ $flavour == cpu ]] && install_torch_cpu
  for lock in requirements/"$flavour".lock requirements/dev.lock; do
    pip_install --require-hashes -r "$lock" ||
      fail "could not install $lock; pip's message is above. Nothing else was tried."
  done
  # Left by hand, these break vLLM and transformers on text-only installations.
  "$venv/bin/python" -m pip uninstall -qq -y torchvision torchaudio torchcodec 2>/dev/null || true
  say "compiling their byte code"
  compile_packages
  echo "$lock_stamp" >"$venv/.opsd-lock"
fi

# --- opsd itself -------------------------------------------------------------------------------
build_inputs() {
  printf '%s\n' "$lock_stamp" "${OPSD_CUDA:-}" "$CXX"
  find pyproject.toml setup.py scripts/build_proto.py proto/opsd trainer/opsd/trainer/csrc \
    -type f \( -name '*.proto' -o -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.py' -o -name '*.toml' \) \
    ! -name '*_pb2*' -print0 | sort -z | xargs -0 sha256sum
}
build_stamp=$(build_inputs | sha256sum)
built() { # every product is there: a cleaned tree must be built again
  compgen -G 'trainer/opsd/trainer/_C*.so' >/dev/null &&
    compgen -G 'proto/opsd/v1/*_pb2.py' >/dev/null && [[ -x $venv/bin/opsd ]]
}
if built && [[ $(cat "$venv/.opsd-build" 2>/dev/null || true) == "$build_stamp" ]]; then
  say "compiled parts and generated code are up to date"
else
  rm -f "$venv/.opsd-build"
  say "building opsd: protobuf code, C++ operators, editable install"
  log=$(mktemp)
  if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps \
    --no-build-isolation -e . >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    fail "the build failed; the compiler's or protoc's message is above."
  fi
  rm -f "$log"
  say "trying it: import vllm, torch, opsd"
  # vLLM writes to both streams while it is imported; only a failure is worth reading.
  if ! log=$("$venv/bin/python" scripts/smoke.py 2>&1); then
    printf '%s\n' "$log" >&2
    fail "installed, but it does not import; the traceback is above."
  fi
  tail -n 1 <<<"$log"
  echo "$build_stamp" >"$venv/.opsd-build"
fi

say "ready after $((SECONDS - start)) s"
cat <<'NEXT'

Next:
  make demo              see the whole loop run on this machine
  make test              run the tests
  .venv/bin/opsd --help  every command
NEXT
