"""When each request of a history came, ran and ended: what its waits are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Floats, Ints
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns


@dataclass(frozen=True, eq=False)
class RequestLives:
    """The lives of a history's requests, one entry a request. A step is given by its entry in the history, from 0."""

    request_ids: Sequence[str]
    arrived: Ints
    """It came before the scheduling of this step; 0 also if it came before the history began. The number of steps: it
    came after the last step.
    """
    ended: Ints
    """In this step it ended, in whatever way; MISSING: it did not."""
    rows: BatchRowColumns
    """What each request ran in each step."""
    starts_us: Floats | None = None
    """When each step's scheduling call began, microseconds; None: the history has no times."""
    arrived_us: Floats | None = None
    """When each request came, on the same clock; NaN: not known, or before the history began."""
    held_from: Ints | None = None
    """Prefill and decode roles: it got its KV blocks before the scheduling of this step; MISSING: it did not. None: it
    is another role.
    """
    held_to: Ints | None = None
    """It joined the running queue before this step, or gave the blocks back; MISSING: neither."""
    found_running: NDArray[np.bool_] | None = None
    """Whether it had run before the history began: then it waits to go on, not to run at all. None: no request had."""
    held_blocks: Ints | None = None
    """The blocks that it got then; MISSING or None: not known."""


def entries_of_steps(numbers: Ints, steps: Ints, otherwise: int = MISSING) -> NDArray[np.int64]:
    """The entries of steps given by their numbers; a number between two steps counts as the later one.

    Args:
        numbers: step numbers; MISSING: none.
        steps: the numbers of a history's steps, ascending.
        otherwise: what stands for MISSING in the result.
    """
    entries = np.searchsorted(steps, numbers).astype(np.int64)
    return np.where(numbers == MISSING, otherwise, entries)


def recorded_ends(recording: Recording) -> NDArray[np.int64]:
    """The entry of the step in which each recorded request ended: finished, or (if that is not recorded) aborted."""
    endings = recording.details.endings
    numbers = np.where(endings.finished_step != MISSING, endings.finished_step, endings.aborted_step)
    return entries_of_steps(numbers, np.asarray(recording.steps["step"], np.int64))
