"""The options of a flight recorder, and the session that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.durations import duration_of
from fdtrace.recorder.errors import TraceError, UsageError
from fdtrace.sizes import SIZE, size_of

if TYPE_CHECKING:
    from fdtrace.recorder.flight.flight_plan import FlightPlan
    from fdtrace.recorder.session import Session

COLLECTOR = "fdtrace.flights.collect_flight"
"""The program of its collector."""


def add_flight_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that can record a flight."""
    group = parser.add_argument_group("a flight recorder", "docs/flights.md")
    group.add_argument(
        "--flight",
        metavar="WINDOW",
        help="keep only the last 10m, 90s, 2h or 512MiB, until a trigger fires; -o is then a directory",
    )
    group.add_argument(
        "--on",
        action="append",
        metavar="TRIGGER",
        help="keep a trace when a step is so: exceeded, 'forward_us > 1e6', 'num_waiting > 100 for 30s' (may be given "
        "several times); always: an error, out of memory, a hang, the engine's death",
    )
    group.add_argument("--after", metavar="TIME", help="a kept trace goes on so long after its trigger (10s)")
    group.add_argument(
        "--at-most-every",
        metavar="TIME",
        help="a trigger so soon after one that kept a trace keeps none (5m)",
    )
    group.add_argument("--keep", type=int, metavar="N", help="keep N traces, the oldest go first (20)")


def flight_plan(args: argparse.Namespace) -> FlightPlan | None:
    """What the options ask for; None without --flight. UsageError if they make no sense."""
    given = [name for name in ("on", "after", "at_most_every", "keep") if getattr(args, name) is not None]
    if args.flight is None:
        if given:
            option = given[0].replace("_", "-")
            raise UsageError(f"--{option} is for a flight recorder", hint=f"--flight 10m --{option} …")
        return None
    from fdtrace.flights.step_conditions import check_triggers
    from fdtrace.recorder.flight.flight_plan import FlightPlan

    if getattr(args, "tui", False):
        raise UsageError(
            "--tui does not show a flight", hint="`fdtrace replay DIR/flight.duckdb` beside it does"
        )
    if args.keep is not None and args.keep < 1:
        raise UsageError(f"--keep is {args.keep}", hint="give 1 or more")
    check_triggers(args.on or [])
    values: dict[str, Any] = {"on": tuple(args.on or ()), "counts": args.metrics is not None}
    for name, option in (("after_ns", "after"), ("at_most_every_ns", "at_most_every")):
        if getattr(args, option) is not None:
            values[name] = duration_of(getattr(args, option), f"--{option.replace('_', '-')}")
    if args.keep is not None:
        values["keep"] = args.keep
    return FlightPlan(**_window(args.flight), **values)


def _window(text: str) -> dict[str, Any]:
    if SIZE.match(text.strip()):
        return {"window_bytes": size_of(text, "--flight")}
    window = duration_of(text, "--flight")
    if window <= 0:
        raise UsageError(f"--flight {text} keeps nothing", hint="--flight 10m")
    return {"window_ns": window}


def recording_session(args: argparse.Namespace, plan: FlightPlan | None, **more: Any) -> Session:
    """A new session to -o: of a recording; or, with a plan, of a flight in that directory.

    What an earlier flight left there that was cut off is kept first.
    """
    from fdtrace.recorder.session import Session

    more |= {"ring_mib": args.ring_mib, "max_steps": args.steps}
    if plan is None:
        return Session.create(args.output, **more)
    from fdtrace.flights.cut_off_flight import close_flight
    from fdtrace.progress import Progress
    from fdtrace.recorder.flight.flight_directory import FlightDirectory

    directory = FlightDirectory(args.output)
    _make_directory(args.output)
    close_flight(directory, Progress())
    return Session.create(directory.ring, flight=plan.as_json(), **more)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        raise UsageError(
            f"{path} is a file", why="a flight recorder writes into a directory", hint="choose another -o"
        ) from None
    except OSError as error:
        raise TraceError(f"cannot write to {path.parent}", why=str(error), hint="choose another -o") from None
