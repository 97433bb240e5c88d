"""Keep what a flight recorder holds at this moment as a trace of its own."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import TargetError

if TYPE_CHECKING:
    from fdtrace.recorder.flight.flight_directory import FlightDirectory

WAIT = 600.0
"""Seconds to wait for the trace, while the flight's collector works."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace keep`."""
    parser.add_argument(
        "flight",
        metavar="PID|DIR",
        help="the pid given to attach, a recorded process's, or the flight's directory",
    )
    parser.add_argument("--because", default="", metavar="TEXT", help="why, for the trace's notes")


def run(args: argparse.Namespace) -> int:
    """Ask the collector for a trace, wait until it is there, and print its path."""
    from fdtrace.recorder.flight.flight_directory import FlightDirectory
    from fdtrace.recorder.leftovers import is_collected

    found = [FlightDirectory(path) for path in _directories(args.flight)]
    flights = [directory for directory in found if is_collected(directory.parts)]
    if not flights:
        raise TargetError(
            f"no flight is recorded at {args.flight}",
            why="no collector works there",
            hint="`fdtrace status` lists what is recorded; `fdtrace recover DIR` keeps what was cut off",
        )
    for directory in flights:
        print(_kept(directory, args.because))
    return 0


def _directories(text: str) -> list[Path]:
    if not text.isdigit():
        return [Path(text)]
    from fdtrace.recorder import agent_processes
    from fdtrace.recorder.inject import process_tree

    agents = [agent_processes.find_agent(process.pid) for process in process_tree(int(text))]
    outputs = {agent.status.get("output") for agent in agents if agent is not None and agent.recording}
    return sorted(Path(output).parent for output in outputs if output)


def _kept(directory: FlightDirectory, why: str) -> Path:
    """The path of the kept trace, once it is finished."""
    from fdtrace.recorder.leftovers import is_collected

    before = {path.name for path in directory.kept}
    request = directory.ask(why)
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        name = directory.answer(request)
        path = directory.path / f"{name}.duckdb"
        if name and path.exists() and path.name not in before:
            return path
        if not is_collected(directory.parts):
            break
        time.sleep(0.05)
    raise TargetError(
        "the trace was not kept yet",
        why=f"the collector of {directory.path} has not finished it",
        hint=f"`fdtrace recover {directory.path}` finishes what it set aside, once it has ended",
    )
