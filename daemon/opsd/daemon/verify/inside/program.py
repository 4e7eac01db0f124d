"""Runs the judged code as a program, on standard input and output."""

from __future__ import annotations

import json
import runpy
import sys

from opsd.daemon.verify.inside.confine import confine


def main() -> None:
    settings = json.loads(sys.argv[1])
    confine(**settings["limits"])
    sys.argv = ["solution.py"]
    sys.path[0:1] = settings["packages"]
    runpy.run_path("/opsd/solution.py", run_name="__main__")
