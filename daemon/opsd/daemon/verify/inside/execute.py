"""Becomes an operator's program, confined."""

from __future__ import annotations

import json
import os
import sys

from opsd.daemon.verify.inside.confine import confine


def main() -> None:
    settings = json.loads(sys.argv[1])
    confine(**settings["limits"])
    try:
        os.execv(settings["argv"][0], settings["argv"])
    except OSError as error:
        sys.exit(f"{settings['argv'][0]} cannot be run: {error.strerror}")
