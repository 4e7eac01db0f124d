"""What verifying has here, as JSON; ``opsd doctor`` asks.

``python -m opsd.daemon.verify.doctor``
"""

from __future__ import annotations

import json

from opsd.daemon.verify.sandbox import Sandbox


def main() -> None:
    print(json.dumps({"sandbox_problem": Sandbox().problem}))


if __name__ == "__main__":
    main()
