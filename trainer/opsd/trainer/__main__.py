"""`python -m opsd.trainer RUN_DIR/run.json`, alone or under torchrun."""

import os
import sys

from opsd.trainer.main import main

status = main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
# Straight out: the interpreter's teardown takes part of a second, and a process group whose peer
# has died can block it for ever.
os._exit(status)
