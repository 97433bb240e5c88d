"""The whole tool in a minute: starts the sandbox engine, records it live, and replays the trace."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

STEPS = 600
OUTPUT = Path("demo.duckdb")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace demo`."""
    parser.add_argument(
        "-o", "--output", type=Path, default=OUTPUT, metavar="TRACE", help=f"default {OUTPUT}"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, metavar="N", help=f"steps to record (default {STEPS})"
    )
    parser.add_argument("--report", action="store_true", help="print the replay, also on a terminal")


def run(args: argparse.Namespace) -> int:
    """Record the sandbox under `original`. Show what was recorded, then the replay."""
    from fdtrace.cli import main
    from fdtrace.progress import Progress

    progress = Progress()
    if args.output == OUTPUT:
        args.output.unlink(
            missing_ok=True
        )  # the last demo's trace; a file that the user names is never overwritten
    engine = [sys.executable, "-m", "fdtrace", "sandbox", "--formula", "original", "--steps", str(args.steps)]
    progress.note("recording: fdtrace record -o " + f"{args.output} -- fdtrace sandbox --steps {args.steps}")
    code = main(["record", "-o", str(args.output), "--", *engine])
    if code:
        return code
    progress.note(f"what was recorded: fdtrace info {args.output}")
    main(["info", str(args.output)])
    report = ["--report"] if args.report else []
    progress.note(f"the replay: fdtrace replay {args.output} -f original -f pr7438 -f pr7499")
    return main(["replay", str(args.output), "-f", "original", "-f", "pr7438", "-f", "pr7499", *report])
