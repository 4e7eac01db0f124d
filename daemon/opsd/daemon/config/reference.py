"""docs/reference/config.md, made from the schema.

``python -m opsd.daemon.config.reference > docs/reference/config.md``
"""

from __future__ import annotations

import sys

from opsd.daemon.config.keys import Key, all_keys, sections
from opsd.daemon.config.template import REQUIRED, default_of, toml_value

_HEAD = """\
# Configuration

<!-- Made from the schema by `python -m opsd.daemon.config.reference`: edit it there. -->

opsd reads one TOML file and lets environment variables override it. `opsd config init` writes a
commented file, `opsd config check` says what is wrong with it, and `opsd config show` prints every
value with where it came from.

The file is the first of: `--config FILE`, `$OPSD_CONFIG`, `./opsd.toml`, `/etc/opsd/opsd.toml`.
Relative paths (`state_dir`, `model.path`, the suites' `path`, an SQLite file in `store.url`,
`signing.key_file`) are taken from the file's directory; without a file, from the working directory.
Unknown keys are errors.

An environment variable is named `OPSD_` and the key's path in capitals, joined by two underscores:
`OPSD_SERVER__PORT=0`, `OPSD_TRAINING__OPTIM__NUM_STEPS=50`, `OPSD_STATE_DIR=/var/lib/opsd`. Numbers
and booleans (`true`/`false`, `1`/`0`, `yes`/`no`, `on`/`off`) are written plainly, lists as JSON:
`OPSD_TRAINING__LORA__TARGET_MODULES='["q_proj", "v_proj"]'`; an empty value unsets an optional key.
A variable that looks like a key but is none is an error; those that Kubernetes makes for services
are let be.
"""


def render() -> str:
    """The page's text."""
    out = [_HEAD]
    for name in sections():
        keys = [
            key
            for key in all_keys().values()
            if ".".join(key.path[:-1]) == name and not key.in_list
        ]
        if keys:
            out.append(f"## {f'[{name}]' if name else 'Top level'}\n")
            out.append(_table(keys))
        for key in keys:
            if key.element is not None:
                below = [k for k in all_keys().values() if k.path[:-1] == key.path]
                out.append(f"## [[{key.name}]]\n")
                out.append(_table(below))
    return "\n".join(out)


def _table(keys: list[Key]) -> str:
    lines = ["| key | allowed | default | what |", "|---|---|---|---|"]
    for key in keys:
        cells = (f"`{key.path[-1]}`", key.allowed, _default(key), key.field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(key: Key) -> str:
    if key.field.is_required() or key.name in REQUIRED:
        return "required"
    default = default_of(key)
    return "unset" if default is None else f"`{toml_value(default)}`"


if __name__ == "__main__":
    sys.stdout.write(render())
