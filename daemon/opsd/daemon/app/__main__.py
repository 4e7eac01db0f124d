"""`python -m opsd.daemon.app`, which is what `opsd serve` becomes.

Exit status: 0 stopped by a signal, 1 the engine or the store failed, 2 usage, 5 the configuration
or the environment does not allow a start.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from opsd.daemon.app.logs import configure_logging
from opsd.daemon.config.load import LoadedConfig, find_config, load_config
from opsd.daemon.errors import ConfigError, OpsdError

_EXIT_FAILED = 1
_EXIT_REFUSED = 5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="opsd serve", description="Runs the daemon.")
    parser.add_argument("--config", type=Path, default=None, help="the TOML file")
    parser.add_argument(
        "--roll-back", default="", metavar="REASON", help="should what serves be damaged"
    )
    parser.add_argument("--actor", default="", help="who orders that")
    arguments = parser.parse_args(argv)
    try:
        loaded = load_config(find_config(arguments.config, os.environ), os.environ)
        configure_logging(loaded.config.log)
        _serve(loaded, arguments.actor, arguments.roll_back)
    except ConfigError as error:
        print(f"opsd: {error}", file=sys.stderr)
        return _EXIT_REFUSED
    except OpsdError as error:
        print(f"opsd: {error}", file=sys.stderr)
        return _EXIT_FAILED
    return 0


def _serve(loaded: LoadedConfig, actor: str, roll_back: str) -> None:
    from opsd.daemon.serve.vllm_build import prepare_environment

    # Read by torch, vLLM and gRPC when they are imported, which the imports below do.
    prepare_environment(loaded.config.engine)

    # uvloop doubles the rate at which grpc.aio moves messages.
    import uvloop

    from opsd.daemon.adapters.promotion import Rescue
    from opsd.daemon.app.daemon import Daemon
    from opsd.daemon.app.parts import build

    async def run() -> None:
        await Daemon(build(loaded), Rescue(actor, roll_back) if roll_back else None).run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    sys.exit(main())
