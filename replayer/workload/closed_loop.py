"""Who comes when: at the recorded times, faster or slower, or when a client has got its answer.

Clients that wait for their answers before they ask again (a closed loop) leave a trace: right after an arrival there
are nearly always as many requests in the engine as there are clients. A replay by the recorded times would be wrong
there: a slower engine would meet requests whose clients still wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_durations import call_times
from fdtrace.replayer.workload.workload import Workload, WorkRequest

FEWEST_ARRIVALS = 20
"""Arrivals that must have been with all clients there, to speak of a closed loop; and twice as many as clients."""
SHARE = 0.9
"""Of the arrivals after the first of each client, so many must have been so."""


@dataclass(frozen=True)
class ComingRequests:
    """How requests come in a replay by time, where that is not as recorded."""

    rate: float = 1.0
    """So many times as fast as recorded."""
    closed: bool | None = None
    """Whether clients wait for their answers; None: where the recording shows that they did."""


AS_RECORDED = ComingRequests(closed=False)
AS_FOUND = ComingRequests()


@dataclass(frozen=True)
class ClosedLoop:
    """Clients of a recording that wait for their answers."""

    num_clients: int
    share: float
    """Share of the later arrivals that found all other clients' requests in the engine."""


def closed_loop_of(recording: Recording) -> ClosedLoop | None:
    """The clients of a recording, where they wait for their answers; None: they do not, or it cannot be told."""
    requests = recording.requests
    if "arrived_at" not in requests or "finished_at" not in requests:
        return None
    arrived = np.sort(np.asarray(requests["arrived_at"], np.int64))  # those that were there before come first
    finished = np.asarray(requests["finished_at"], np.int64)
    finished = np.sort(finished[finished != MISSING])
    there = np.arange(1, len(arrived) + 1) - np.searchsorted(finished, arrived)
    there = there[arrived != MISSING]
    if len(there) < FEWEST_ARRIVALS:
        return None
    clients = int(np.quantile(there, 0.95))
    later = there[min(clients, len(there)) :]
    if clients < 2 or len(later) < max(FEWEST_ARRIVALS, 2 * clients):
        return None
    share = float((np.abs(later - clients) <= max(1, clients // 10)).mean())
    return ClosedLoop(clients, share) if share >= SHARE else None


def with_coming(workload: Workload, recording: Recording, coming: ComingRequests) -> Workload:
    """A workload by time whose requests come otherwise than at the recorded times; its notes say how.

    Raises:
        UsageError: clients are to wait for their answers, and the recording does not show how many there are.
    """
    loop = closed_loop_of(recording) if coming.closed is not False else None
    if loop is None and coming.closed:
        raise UsageError(
            "this recording shows no clients that wait for their answers",
            why="requests came whether or not others had ended",
            hint="arrivals=recorded, or rate=1.5x",
        )
    if loop is not None:
        if coming.rate != 1.0:
            raise UsageError("clients that wait for their answers have no rate", hint="arrivals=closed alone")
        note = (
            f"arrivals: {loop.num_clients} clients that wait for their answers, as the recording shows "
            f"({loop.share:.0%} of its arrivals): each comes when another request has ended"
        )
        return replace(workload, requests=_waiting(workload, recording, loop), notes=(*workload.notes, note))
    if coming.rate == 1.0:
        return workload
    note = f"arrivals: {coming.rate:g} times as fast as recorded"
    requests = tuple(replace(one, arrival=round(one.arrival / coming.rate)) for one in workload.requests)
    return replace(workload, requests=requests, notes=(*workload.notes, note))


def _waiting(workload: Workload, recording: Recording, loop: ClosedLoop) -> tuple[WorkRequest, ...]:
    """The requests after each client's first come so long after an answer as they came after the one before them."""
    thinks = _thinks(recording)
    names = recording.requests["request_id"].tolist()
    think_of = dict(zip(names, thinks.tolist(), strict=True))
    found: list[WorkRequest] = []
    for at, one in enumerate(workload.requests):
        first = at < loop.num_clients or one.resumed is not None
        found.append(one if first else replace(one, think=max(0, int(think_of[one.request_id]))))
    return tuple(found)


def _thinks(recording: Recording) -> NDArray[np.int64]:
    """By entry: microseconds from the end of the step that ended the request before it to its arrival."""
    calls, steps = call_times(recording), np.asarray(recording.steps["step"])
    endings = recording.details.endings
    ended = np.maximum(endings.finished_step, endings.aborted_step)
    ended = ended[ended != MISSING]
    at = np.minimum(np.searchsorted(steps, ended) + 1, len(calls) - 1)
    free: Sequence[int] = np.sort(calls[at]).tolist()
    finished = np.sort(np.asarray(recording.requests["finished_at"], np.int64))
    finished = finished[finished != MISSING]
    arrived = np.asarray(recording.requests["arrived_at"], np.int64)
    thinks = np.zeros(len(arrived), np.int64)
    for entry, when in enumerate(arrived.tolist()):
        before = int(np.searchsorted(finished, when)) - 1
        if when != MISSING and 0 <= before < len(free):
            thinks[entry] = max(0, when - free[before]) // 1000
    return thinks
