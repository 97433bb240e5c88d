"""`python -m fdtrace.sandbox`: the sandbox engine alone."""

from __future__ import annotations

import argparse
import sys

from fdtrace.recorder.errors import FdtraceError
from fdtrace.sandbox import command


def main() -> int:
    """Parse the command line, run the engine, and print an error as `fdtrace` does."""
    parser = argparse.ArgumentParser(prog="python -m fdtrace.sandbox", description=__doc__)
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except FdtraceError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
