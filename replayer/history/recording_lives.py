"""When each request of a recording came, ran and ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.lives import RequestLives, entries_of_steps, recorded_ends
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.step_durations import call_times


def recorded_lives(recording: Recording, rows: BatchRowColumns) -> RequestLives:
    """The lives of a recording's requests, by their entry in it; `rows` are what they ran in its steps."""
    steps = np.asarray(recording.steps["step"], np.int64)
    requests = recording.requests
    numbers = np.asarray(requests["arrived_step"], np.int64)
    starts = arrived_us = None
    try:
        calls = call_times(recording)
    except UsageError:
        calls = None  # a recording without times: its waits are counted in steps alone
    if calls is not None and "arrived_at" in requests:
        starts = (calls - calls[0]) / 1000.0
        arrived_at = np.asarray(requests["arrived_at"], np.int64)
        is_known = (arrived_at != MISSING) & (numbers != MISSING)
        arrived_us = np.where(is_known, (arrived_at - calls[0]) / 1000.0, np.nan)
    lives = RequestLives(
        [str(request_id) for request_id in requests["request_id"].tolist()],
        entries_of_steps(numbers, steps, otherwise=0),
        recorded_ends(recording),
        rows,
        starts,
        arrived_us,
    )
    handover = recording.details.handover
    if handover is None:
        return replace(lives, found_running=_found_running(recording, rows))
    left = np.where(handover.joined != MISSING, handover.joined, handover.discarded)
    return replace(
        lives,
        held_from=entries_of_steps(handover.preallocated, steps),
        held_to=entries_of_steps(left, steps),
    )


def with_recorded_lives(
    history: History, recording: Recording, read: Callable[[Recording], BatchRowColumns | None]
) -> History:
    """The history of a recording with its lives; other histories as they are. `read` gives what requests ran in each
    step; None: there are too many to be taken into memory.
    """
    if history.how != "recorded":
        return history

    def lives() -> RequestLives | None:
        rows = read(recording)
        return None if rows is None else recorded_lives(recording, rows)

    return replace(history, lives=lives)


def _found_running(recording: Recording, rows: BatchRowColumns) -> NDArray[np.bool_]:
    """Of each request: whether it came before the recording, and its first recorded row goes on with what it had
    computed (not only with what the prefix cache gave it).
    """
    requests = recording.requests
    arrived = np.asarray(requests["arrived_step"], np.int64)
    cached = np.maximum(np.asarray(requests.get("num_cached_tokens", np.zeros(len(arrived))), np.int64), 0)
    entries, first = np.unique(rows.request, return_index=True)  # rows ascend by step
    goes_on = ~rows.prefill[first] | (rows.num_computed_tokens[first] > cached[entries])
    found = np.zeros(len(arrived), bool)
    found[entries] = goes_on
    running: NDArray[np.bool_] = found & (arrived == MISSING)
    return running
