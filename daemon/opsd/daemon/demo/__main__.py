"""`python -m opsd.daemon.demo`, which is what `opsd demo` runs."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from opsd.daemon.demo.options import Options, parse
from opsd.daemon.demo.report import build, print_table, succeeded, write_json
from opsd.daemon.demo.screen import Screen
from opsd.daemon.demo.story import Evidence, tell
from opsd.daemon.demo.workspace import DemoError

_PLAIN_WIDTH = 120


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if argv is None else argv)
    # Widths of their own: a table must not be cut when the output is a file.
    messages = Console(stderr=True, width=None if sys.stderr.isatty() else _PLAIN_WIDTH)
    work_dir = options.work_dir or Path(tempfile.mkdtemp(prefix="opsd-demo-"))
    try:
        evidence = asyncio.run(tell(options, work_dir, Screen(messages)))
    except DemoError as error:
        messages.print(f"opsd demo: {error}", style="red", markup=False, highlight=False)
        messages.print(f"The daemon's state and log are kept in {work_dir}", highlight=False)
        return 1
    except KeyboardInterrupt:
        messages.print(f"interrupted; the daemon's state and log are kept in {work_dir}")
        return 130
    return _conclude(evidence, options, work_dir, messages)


def _conclude(evidence: Evidence, options: Options, work_dir: Path, messages: Console) -> int:
    result = build(evidence)
    print_table(result, Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH))
    if options.json_path is not None:
        write_json(result, options.json_path)
        messages.print(f"written to {options.json_path}", highlight=False)
    if not succeeded(evidence):
        messages.print(
            f"The demonstration did not succeed; the daemon's state and log are kept in {work_dir}",
            style="red",
        )
        return 1
    if options.work_dir is None and not options.keep:
        shutil.rmtree(work_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
