"""Sets a window of the ring aside, in an instant: hard links to the published database and to the parts of the window.

From then on nothing that the ring does can touch it. `finish_keep` makes the trace of it in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdtrace.recorder.flight.firing import clock
from fdtrace.recorder.flight.flight_directory import HALF, MAKING, FlightDirectory
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.flight.flight_segments import Segment
from fdtrace.recorder.flight.flight_store import FlightStore
from fdtrace.recorder.flight.keep_queue import ScheduledKeep

STATE, KEEP = "state.duckdb", "keep.json"
"""The published database at that time, and what is to be made of it."""


def set_aside(
    directory: FlightDirectory, store: FlightStore, plan: FlightPlan, keep: ScheduledKeep, segment: Segment,
    undated: Mapping[int, Sequence[Sequence[Any]]],
) -> None:  # fmt: skip
    """Make the spool of a kept trace, after `store` has published. It appears whole, or not at all.

    Args:
        directory: of the flight recorder.
        store: the ring.
        plan: its limits.
        keep: what to keep.
        segment: the first segment of the window.
        undated: by engine, the events that are in no part yet, because their step is not known.
    """
    half = directory.path / f"{keep.name}{HALF}"
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(mode=0o700)
    names = store.names_from(segment.serial)
    _link(store.path, half / STATE)
    live = dict(store.live.names)
    for name in (*(name for table_names in names.values() for name in table_names), *live.values()):
        _link(store.directory / name, half / name)
    waiting = {str(engine): rows for engine, rows in undated.items() if rows}
    text = json.dumps({**_described(plan, keep, segment, names), "live": live, "undated": waiting})
    with (half / KEEP).open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    half.rename(directory.path / f"{keep.name}{MAKING}")


def _described(
    plan: FlightPlan, keep: ScheduledKeep, segment: Segment, names: dict[str, list[str]]
) -> dict[str, Any]:
    return {
        "name": keep.name,
        "begins": segment.begins,
        "ends": keep.due,
        "cuts": segment.as_json()["cuts"],
        "parts": names,
        "firings": [firing.as_json() for firing in keep.firings],
        "note": note_of(plan, keep, segment),
    }


def note_of(plan: FlightPlan, keep: ScheduledKeep, segment: Segment) -> str:
    """The note that says why this trace was kept."""
    first = keep.firings[0]
    texts = [f"a flight recorder kept this, from {clock(segment.begins)} on: {first.sentence}"]
    if keep.num_firings > 1:
        texts.append(f"{keep.num_firings - 1} more triggers fired within it (events `triggered`)")
    if keep.suppressed:
        counts = ", ".join(f"`{trigger}` {count}" for trigger, count in sorted(keep.suppressed.items()))
        texts.append(
            f"since the trace kept before this one, triggers came within {plan.at_most_every_ns / SECOND:g} s of one "
            f"that had kept a trace, and kept nothing: {counts}"
        )
    return "; ".join(texts)


def _link(source: Path, target: Path) -> None:
    """A second name for the file. A copy, if the file system has no hard links."""
    try:
        os.link(source, target)
    except PermissionError:
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        shutil.copyfile(source, target)
