"""What is armed or recorded on this machine: a line for each process."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace status`."""
    parser.add_argument("--json", action="store_true", help="a JSON list, for machines")


def run(args: argparse.Namespace) -> int:
    """Print every agent of this user."""
    import json

    from fdtrace.recorder import agent_processes
    from fdtrace.recorder.errors import TargetError
    from fdtrace.recorder.leftovers import sweep

    sweep()
    problems: list[TargetError] = []
    agents = agent_processes.agents(problems)
    for problem in problems:
        sys.stderr.write(f"fdtrace: {problem}\n")
    if args.json:
        print(json.dumps([agent.status for agent in agents]))
        return 0
    for agent in agents:
        print(_line(agent.pid, agent.status))
    for line in dict.fromkeys(_flight(agent.status) for agent in agents):
        if line:
            print(line)
    if not agents:
        print("nothing is armed or recorded")
    return 0


def _line(pid: int, status: dict[str, Any]) -> str:
    state = "armed, waits"
    if status.get("recording"):
        state = f"recording to {status.get('output')}"
    elif not status.get("armed"):
        state = "off"
    problem = f"; problem: {status['problem']}" if status.get("problem") else ""
    return f"{pid}  {state}; hooks: {', '.join(status.get('hooks', ())) or 'none yet'}{problem}"


def _flight(status: dict[str, Any]) -> str:
    """A line about the flight recorder of a recording; empty if it has none."""
    from pathlib import Path

    from fdtrace.recorder.flight.flight_directory import RING, FlightDirectory
    from fdtrace.recorder.printable import printable

    output = Path(str(status.get("output")))
    flight = (
        FlightDirectory(output.parent).status() if status.get("recording") and output.name == RING else {}
    )
    if not flight:
        return ""
    kept, coming = flight.get("kept", []), len(flight.get("waiting", [])) + len(flight.get("making", []))
    last = f", the last {kept[-1]}" if kept else ""
    more = f", on their way: {coming}" if coming else ""
    size = flight.get("bytes", 0) / (1 << 20)
    return printable(
        f"flight in {output.parent}: {size:.1f} MiB in its ring; kept traces: {len(kept)}{last}{more}; "
        f"triggers too soon after another: {flight.get('num_suppressed', 0)}"
    )
