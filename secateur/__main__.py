"""`python -m secateur` and the `secateur` script."""

import sys

from .tools.cli import run


def main() -> None:
    """Runs the command line and exits with its code."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
