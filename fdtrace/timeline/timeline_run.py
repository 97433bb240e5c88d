"""One run on a time axis: a recording or a replay, in the form from which a timeline is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import Ints
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns

CHUNK_STEPS = 1 << 14
"""Steps that are in memory at a time."""

TimelineArgs: TypeAlias = Mapping[str, "int | float | str"]
"""Figures that a viewer shows for a slice or an instant."""


@dataclass(frozen=True, eq=False)
class TimelineSteps:
    """Some steps that follow each other."""

    first: int
    """The entry of the first of them in the run, from 0."""
    columns: Mapping[str, NDArray[np.int64]]
    """By name an entry a step, as of table `step`; MISSING: not known."""
    rows: BatchRowColumns
    """What each request ran in them; steps are entries in the run."""


@dataclass(frozen=True, eq=False)
class TimelineRequests:
    """The requests of a run; an entry a request."""

    ids: Sequence[str]
    arrived_ns: Ints
    """When each came; MISSING: before the run, or not known."""
    first_entry: Ints
    """The entry of the first step in which it ran; MISSING: it ran in none."""
    last_entry: Ints
    args: Callable[[int], TimelineArgs]
    """What else is known of one of them."""


@dataclass(frozen=True)
class TimelineInstant:
    """Something that happened at one moment."""

    ns: int
    name: str
    args: TimelineArgs


@dataclass(frozen=True)
class TimelineSlice:
    """Something that took its time."""

    begin_ns: int
    end_ns: int
    name: str
    args: TimelineArgs


@dataclass(frozen=True, eq=False)
class TimelineRun:
    """A run. Times are nanoseconds since 1970, or since the run's first step if it has no clock."""

    name: str
    """How its group of tracks is called."""
    limit: int
    """Tokens that a step may run."""
    numbers: Ints
    """The steps' numbers."""
    begin_ns: Ints
    end_ns: Ints
    """When each step began and ended; a step ends before the next one begins."""
    requests: TimelineRequests
    steps: Callable[[], Iterator[TimelineSteps]]
    """All steps, `CHUNK_STEPS` at a time."""
    exceeded: Callable[[], Iterator[TimelineInstant]]
    events: Callable[[], Iterator[TimelineInstant]]
    calls: Callable[[], Iterator[TimelineSlice]] = lambda: iter(())
    columns: tuple[str, ...] = ()
    """Those of `TimelineSteps.columns` that are known for some step."""


def chunks(num_steps: int) -> Iterator[tuple[int, int]]:
    """The first entry of each chunk of steps, and the first one behind it."""
    for first in range(0, num_steps, CHUNK_STEPS):
        yield first, min(num_steps, first + CHUNK_STEPS)


def steps_on_axis(begin: Ints, durations: Ints) -> tuple[Ints, Ints]:
    """Beginnings that never go back, and ends that lie before the next beginning.

    Args:
        begin: when each step began.
        durations: how long each took; 0 or less: up to the next one.
    """
    begins = np.maximum.accumulate(begin)
    gaps = np.diff(begins)
    typical = int(np.median(gaps)) if len(gaps) else 1_000_000
    following = np.append(begins[1:], begins[-1:] + max(typical, 1))
    ends = np.where(durations > 0, np.minimum(begins + durations, following), following)
    return begins, ends
