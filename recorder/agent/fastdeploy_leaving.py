"""FastDeploy: requests that are between the two sections of `finish_requests` when a recording begins.

The first section takes a request out of all queues, the second gives its blocks back. In between, only the thread that
runs `finish_requests` (engine/sched/resource_manager_v1.py) knows the request, in a local variable.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from typing import Any


def leaving_requests(manager: Any) -> list[tuple[int, Any]]:
    """Requests that have left and hold their blocks, each with the id of the frame of its `finish_requests`.

    The caller holds the scheduler's lock, so no section is running. A request whose blocks were given back has none.
    """
    frames = sys._current_frames()
    frames.pop(get_ident(), None)  # this thread's own: it would refer to itself
    found: list[tuple[int, Any]] = []
    for top in frames.values():
        frame: Any = top
        while frame is not None:
            if frame.f_code.co_name == "finish_requests":
                names = frame.f_locals
                if names.get("self") is manager:
                    requests = names.get("need_postprocess_reqs", ())
                    found += [(id(frame), request) for request in requests if request.block_tables]
            frame = frame.f_back
    return found
