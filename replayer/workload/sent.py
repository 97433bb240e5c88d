"""When clients sent the requests of a recorded deployment, and aborted them."""

from __future__ import annotations

from collections.abc import Mapping

from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.workload.workload import WorkRequest


def sent_at(recording: Recording, order: CallOrder) -> dict[int, float]:
    """Milliseconds since the first recorded forward, by a request's number, of all that came while it recorded.

    Where the recording does not know when a request was sent, it is when the engine took it up.
    """
    began = int(recording.steps["ts"][0])
    changes = order.changes
    queued = changes["kind"] == "queued"
    taken = dict(zip(changes["request"][queued].tolist(), changes["ts"][queued].tolist(), strict=True))
    columns = recording.requests
    arrived = dict(zip(columns["request"].tolist(), columns["arrived_at"].tolist(), strict=True))
    return {
        number: ((at if arrived.get(number, MISSING) == MISSING else arrived[number]) - began) / 1e6
        for number, at in taken.items()
    }


def aborted_at(
    recording: Recording, order: CallOrder, requests: Mapping[int, WorkRequest]
) -> tuple[tuple[float, str], ...]:
    """When a client aborted a request, in the same time, and the request's id."""
    began, changes = int(recording.steps["ts"][0]), order.changes
    wanted = changes["kind"] == "abort_wanted"
    return tuple(
        ((at - began) / 1e6, requests[number].request_id)
        for number, at in zip(
            changes["request"][wanted].tolist(), changes["ts"][wanted].tolist(), strict=True
        )
        if number in requests
    )
