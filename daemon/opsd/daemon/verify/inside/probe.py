"""Shows that a sandbox can be made and that it holds."""

from __future__ import annotations

import contextlib
import json
import os
import sys

from opsd.daemon.verify.inside.confine import confine


def main() -> None:
    confine(**json.loads(sys.argv[1])["limits"])
    if os.path.exists("/etc/passwd") or os.path.exists("/home"):
        sys.exit("the host's files can be seen")
    with contextlib.suppress(OSError), open("/proc/1/environ", "rb") as file:
        if file.read():
            sys.exit("an environment can be read")
    for folder in ("/", "/dev", "/opsd"):
        with contextlib.suppress(OSError), open(os.path.join(folder, "file"), "w"):
            sys.exit(f"{folder} can be written to")
    print("confined")
