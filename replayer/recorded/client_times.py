"""When clients sent the requests of a recording."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Columns


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
