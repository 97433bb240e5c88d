"""What is armed or recorded on this machine: a line a process."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace status`."""
    parser.add_argument("--json", action="store_true", help="a JSON list, for machines")


def run(args: argparse.Namespace) -> int:
    """Print every agent of this user."""
    import json

    from rich.console import Console
    from rich.table import Table

    from recorder import control

    agents = control.agents()
    if args.json:
        print(json.dumps([agent.status for agent in agents]))
        return 0
    table = Table("pid", "state", "output", "hooks", "problem", box=None)
    for agent in agents:
        status = agent.status
        state = "recording" if agent.recording else "armed" if status.get("armed") else "off"
        hooks = ", ".join(status.get("hooks", ()))
        table.add_row(str(agent.pid), state, status.get("output") or "", hooks, status.get("problem", ""))
    Console().print(table if agents else "nothing is armed or recorded")
    return 0
