"""`python -m secateur` and the `secateur` script."""

import os
import signal
import sys
from typing import Any

_INTERRUPTED = 130
"""`ExitCode.INTERRUPTED`, whose module is not imported yet."""


def main() -> None:
    """Runs the command line and exits with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else somebody ignores it, as nohup does
        signal.signal(signal.SIGINT, _end)
    from .tools.cli import run  # takes a third of a second, in which people press Ctrl-C

    sys.exit(run(sys.argv[1:]))


def _end(*_: Any) -> None:
    os.write(2, b"interrupted: nothing had begun\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
