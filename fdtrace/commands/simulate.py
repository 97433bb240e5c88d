"""Schedule a workload with no trace: a case in the lab's JSON format in, one line of decisions a step out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from recorder.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace simulate`."""
    parser.add_argument("workload", type=Path, metavar="WORKLOAD.json", help="configuration and requests")
    parser.add_argument("-f", "--formula", required=True, metavar="FORMULA", help="as for `fdtrace replay`")
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version (default: that of the formula's time)"
    )
    parser.add_argument(
        "--decisions", type=Path, metavar="OUT.jsonl", help="write the decisions there, not to stdout"
    )


def run(args: argparse.Namespace) -> int:
    """Simulate to the end of the workload, or to its `max_steps`."""
    from fdtrace.formulas import formula
    from fdtrace.replays import policy_of
    from replayer.config import ORIGINAL
    from replayer.simulation import Simulation, golden_line
    from replayer.workload import workload_from_case

    simulation = Simulation(
        workload_from_case(_read(args.workload)), formula(args.formula), policy_of(args.policy) or ORIGINAL
    )
    with _output(args.decisions) as out:
        for step in simulation:
            out.write(json.dumps(golden_line(step)) + "\n")
    return 0


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    except ValueError as error:
        raise UsageError(f"{path} is no JSON", why=str(error)) from None


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("w")
    except OSError as error:
        raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
    with file:
        yield file
