#!/usr/bin/env bash
# Run scripts/lock.py with the resolver it was written for, in an environment of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=build/lock-tools
uv_version=0.13.8
findings=$(scripts/preflight.sh)
python=$(sed -n 's/^PYTHON=//p' <<<"$findings")
if [[ $("$tools/bin/uv" --version 2>/dev/null || true) != "uv $uv_version"* ]]; then
  "$python" -m venv "$tools"
  "$tools/bin/pip" install -qq "uv==$uv_version"
fi
UV=$tools/bin/uv exec "$python" scripts/lock.py "$@"
