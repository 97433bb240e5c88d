"""When requests arrive: at the recorded times, at another rate, or after a client has got its answer.

Clients that wait for their answers before they ask again (a closed loop) can be recognised: right after an arrival, the
engine nearly always holds as many requests as there are clients. For them a replay by the recorded times would be
wrong:
a slower engine would get requests from clients that are still waiting for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.client_times import sending_times
from fdtrace.replayer.recorded.step_durations import call_times
from fdtrace.replayer.workload.workload import Workload, WorkRequest

FEWEST_ARRIVALS = 20
"""A closed loop needs at least so many arrivals after each client's first, and at least twice as many as clients."""
SHARE = 0.9
"""The share of these arrivals that must have found the requests of all other clients in the engine."""


@dataclass(frozen=True)
class ArrivalMode:
    """How requests arrive in a replay by time."""

    rate: float = 1.0
    """How many times as fast as recorded they arrive."""
    closed: bool | None = None
    """Whether clients wait for their answers; None: if the recording shows that they did."""


AS_RECORDED = ArrivalMode(closed=False)
AS_FOUND = ArrivalMode()


@dataclass(frozen=True)
class ClosedLoop:
    """Clients of a recording that wait for their answers."""

    num_clients: int
    share: float
    """Share of the later arrivals that found all other clients' requests in the engine."""


def closed_loop_of(recording: Recording) -> ClosedLoop | None:
    """The clients of a recording if they wait for their answers; None: they do not, or this cannot be found out."""
    requests = recording.requests
    if "arrived_at" not in requests or "finished_at" not in requests:
        return None
    arrived = np.sort(
        np.asarray(requests["arrived_at"], np.int64)
    )  # requests from before the recording (MISSING) come first
    finished = np.asarray(requests["finished_at"], np.int64)
    finished = np.sort(finished[finished != MISSING])
    num_in_engine = np.arange(1, len(arrived) + 1) - np.searchsorted(finished, arrived)
    num_in_engine = num_in_engine[arrived != MISSING]
    if len(num_in_engine) < FEWEST_ARRIVALS:
        return None
    clients = int(np.quantile(num_in_engine, 0.95))
    later_counts = num_in_engine[min(clients, len(num_in_engine)) :]
    if clients < 2 or len(later_counts) < max(FEWEST_ARRIVALS, 2 * clients):
        return None
    share = float((np.abs(later_counts - clients) <= max(1, clients // 10)).mean())
    return ClosedLoop(clients, share) if share >= SHARE else None


def with_coming(workload: Workload, recording: Recording, coming: ArrivalMode) -> Workload:
    """A workload by time whose requests arrive as `coming` says; its notes say how.

    Raises:
        UsageError: clients shall wait for their answers, but the recording does not show how many there are.
    """
    loop = closed_loop_of(recording) if coming.closed is not False else None
    if loop is None and coming.closed:
        raise UsageError(
            "this recording shows no clients that wait for their answers",
            why="requests also came when no other request had ended",
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
    requests = tuple(
        request._replace(
            arrival=round((request.arrival - request.on_its_way) / coming.rate) + request.on_its_way
        )
        for request in workload.requests
    )
    return replace(workload, requests=requests, notes=(*workload.notes, note))


def _waiting(workload: Workload, recording: Recording, loop: ClosedLoop) -> tuple[WorkRequest, ...]:
    """Each request after a client's first comes after an answer, with the recorded delay between answer and request."""
    thinks = _thinks(recording)
    names = recording.requests["request_id"].tolist()
    think_of = dict(zip(names, thinks.tolist(), strict=True))
    requests: list[WorkRequest] = []
    for index, request in enumerate(workload.requests):
        comes_unasked = index < loop.num_clients or request.resumed is not None
        requests.append(
            request if comes_unasked else request._replace(think=max(0, int(think_of[request.request_id])))
        )
    return tuple(requests)


def _thinks(recording: Recording) -> NDArray[np.int64]:
    """By entry: microseconds from the end of the step in which the last ended request finished until its arrival."""
    calls, steps = call_times(recording), np.asarray(recording.steps["step"])
    endings = recording.details.endings
    ended = np.maximum(endings.finished_step, endings.aborted_step)
    ended = ended[ended != MISSING]
    next_step = np.minimum(np.searchsorted(steps, ended) + 1, len(calls) - 1)
    answered_at: Sequence[int] = np.sort(calls[next_step]).tolist()
    finished = np.sort(np.asarray(recording.requests["finished_at"], np.int64))
    finished = finished[finished != MISSING]
    arrived = sending_times(recording.requests)
    thinks = np.zeros(len(arrived), np.int64)
    for entry, arrival in enumerate(arrived.tolist()):
        previous = int(np.searchsorted(finished, arrival)) - 1
        if arrival != MISSING and 0 <= previous < len(answered_at):
            thinks[entry] = max(0, arrival - answered_at[previous]) // 1000
    return thinks
