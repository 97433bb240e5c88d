"""`python -m fdtrace`, and the entry point of the command `fdtrace`."""

import sys

from fdtrace.cli import main

if __name__ == "__main__":
    sys.exit(main())
