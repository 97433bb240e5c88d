"""When clients sent the requests of a recorded deployment, and aborted them."""

from __future__ import annotations

from collections.abc import Mapping

from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.workload.workload import WorkRequest


def arrival_ms_by_request(recording: Recording, order: CallOrder) -> dict[int, float]:
    """By request number, for the requests that came during the recording: milliseconds since the first recorded
    forward.

    If the recording does not know when a request was sent, it is the time when the engine took it up.
    """
    began = int(recording.steps["ts"][0])
    changes = order.changes
    queued = changes["kind"] == "queued"
    taken_up_at = dict(zip(changes["request"][queued].tolist(), changes["ts"][queued].tolist(), strict=True))
    columns = recording.requests
    arrived = dict(zip(columns["request"].tolist(), columns["arrived_at"].tolist(), strict=True))
    return {
        number: ((time if arrived.get(number, MISSING) == MISSING else arrived[number]) - began) / 1e6
        for number, time in taken_up_at.items()
    }


def abort_ms_by_request(
    recording: Recording, order: CallOrder, requests: Mapping[int, WorkRequest]
) -> tuple[tuple[float, str], ...]:
    """When clients aborted requests (milliseconds since the first recorded forward), each with the request's id."""
    began, changes = int(recording.steps["ts"][0]), order.changes
    is_abort = changes["kind"] == "abort_wanted"
    return tuple(
        ((time - began) / 1e6, requests[number].request_id)
        for number, time in zip(
            changes["request"][is_abort].tolist(), changes["ts"][is_abort].tolist(), strict=True
        )
        if number in requests
    )
