"""When clients sent the requests of a recording, and how long after that a scheduling call could see them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Columns
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.recorded.step_durations import call_times, requests_left
from fdtrace.replayer.recorded.step_state import column_or_zero

FEWEST_EXACT = 10
"""So many requests must have come to an idle engine for their delays to say how long it usually is."""


def sending_times(requests: Columns) -> NDArray[np.int64]:
    """When each request reached the server, ns: `sent_at` if the engine says it, else `arrived_at`. MISSING: it came
    before the recording.

    `arrived_at` is when the scheduler got the request. vLLM's scheduler takes requests only between two steps.
    """
    arrived = np.asarray(requests["arrived_at"], dtype=np.int64)
    sent = requests.get("sent_at")
    if sent is None:
        return arrived
    return np.where((arrived == MISSING) | (np.asarray(sent) == MISSING), arrived, np.minimum(sent, arrived))


def delays_to_call(recording: Recording) -> NDArray[np.int64]:
    """How long after its sending a scheduling call could see each request, ns: the API server reads and tokenizes it
    and sends it to the engine, which takes requests between two steps. 0: the recording does not say when it was sent.

    The call that saw a request is recorded, and the one before it that did not. So its delay lies between two values.
    An idle engine calls at once, so the delay of a request that came then is known. One delay is taken for all others:
    the median of the known ones or, if these are too few, the one that lies between the two values for most requests.
    Where it does not lie there, the nearer of the two is taken.
    """
    requests = recording.requests
    sent, arrived = requests.get("sent_at"), requests.get("arrived_at")
    delays = np.zeros(len(requests["request"]), dtype=np.int64)
    if sent is None or arrived is None:
        return delays
    calls = call_times(recording)
    known = (sent != MISSING) & (arrived != MISSING) & (arrived <= calls[-1])
    if not known.any():
        return delays
    seen = np.searchsorted(calls, arrived[known])
    latest = np.maximum(calls[seen] - sent[known], 0)
    unseen = np.where(seen > 0, calls[np.maximum(seen - 1, 0)] - sent[known], 0)
    unseen = np.clip(unseen, 0, latest)
    was_idle = _was_idle(recording, calls, sent[known], seen)
    usual = int(np.median(latest[was_idle])) if was_idle.sum() >= FEWEST_EXACT else _in_most(unseen, latest)
    unseen[was_idle] = latest[was_idle]
    delays[:] = usual
    delays[known] = np.clip(usual, np.minimum(unseen + 1000, latest), latest)
    delays[(sent == MISSING) | (arrived == MISSING)] = 0
    return delays


def _was_idle(
    recording: Recording, calls: NDArray[np.int64], sent: NDArray[np.int64], seen: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether requests were sent when the engine had nothing to do. `seen`: the entries of the steps that saw them."""
    before = np.maximum(seen - 1, 0)
    ended = calls + 1000 * (
        column_or_zero(recording, "schedule_us") + column_or_zero(recording, "forward_us")
    )
    is_idle: NDArray[np.bool_] = (seen > 0) & (requests_left(recording)[before] <= 0) & (ended[before] < sent)
    return is_idle


def _in_most(lows: NDArray[np.int64], highs: NDArray[np.int64]) -> int:
    """The number that is above `lows` and not above `highs` in most entries; of several, the middle one."""
    ends, begins = np.sort(highs), np.sort(lows)
    num_open = np.searchsorted(begins, ends) - np.searchsorted(ends, ends)
    last = int(ends[num_open.argmax()])
    first = int(begins[max(0, int(np.searchsorted(begins, last)) - 1)])
    return (first + last) // 2
