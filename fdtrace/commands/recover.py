"""Make a trace from what a recording left that was cut off: it was killed, or its terminal was lost."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from fdtrace.recorder.errors import TraceError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace recover`."""
    parser.add_argument(
        "trace",
        type=Path,
        metavar="TRACE",
        help="the path that was given with -o: a trace, or a flight's directory",
    )


def run(args: argparse.Namespace) -> int:
    """Read what the rings still hold, and write the final file."""
    from fdtrace.progress import Progress
    from fdtrace.recorder import attach_server
    from fdtrace.recorder.collector.process import recover
    from fdtrace.recorder.collector.saved_state import check_parts
    from fdtrace.recorder.session import Session
    from fdtrace.recorder.trace_paths import parts_directory

    path: Path = args.trace
    if path.is_dir():
        return _recover_flight(path)
    parts = parts_directory(path)
    if not os.path.lexists(parts):
        raise TraceError(
            f"there is nothing to recover at {path}",
            why=f"{path} is a finished trace" if path.exists() else f"there is no {parts}",
        )
    os.umask(os.umask(0o077) | 0o077)  # nobody else may read what was recorded
    check_parts(parts)
    session = Session.load(parts / "session.json")
    progress = Progress()

    def stop_agents() -> None:
        for note in attach_server.detach(session.id, "recover"):
            progress.note(note)

    steps = recover(session, stop_agents)
    progress.note(f"{steps} steps in {path}")
    return 0


def _recover_flight(path: Path) -> int:
    """Close a flight that was cut off: 0 when all that it kept is finished."""
    from fdtrace.flights.cut_off_flight import close_flight, is_flight
    from fdtrace.progress import Progress
    from fdtrace.recorder.flight.flight_directory import FlightDirectory

    directory, progress = FlightDirectory(path), Progress()
    if not is_flight(directory):
        raise TraceError(f"there is nothing to recover in {path}", why="no flight was cut off there")
    for name in close_flight(directory, progress):
        progress.note(f"kept {path / name}")
    return 0
