"""FastDeploy: what the first recorded call finds in the queues, the sets beside them, and the block pool.

A request that is between the two sections of `finish_requests` (engine/sched/resource_manager_v1.py) is in no queue.
The first section takes it out of them, the second gives its blocks back. In between, only the thread that runs the
method knows it, in a local variable.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from typing import TYPE_CHECKING, Any, Iterable, Protocol

from . import fastdeploy_config as config
from .fastdeploy_cache import FoundCache

if TYPE_CHECKING:
    from .fastdeploy_roles import RoleSections
    from .order import OrderWriter


class FoundOrder(Protocol):
    """The part of `FastDeployOrder` that is filled with what the first call finds."""

    writer: OrderWriter
    roles: RoleSections
    fresh: dict[str, Any]
    leaving_requests: dict[tuple[int, str], int | None]

    def introduce(self, request: Any) -> None: ...

    def write(self, kind: str, request_id: str | None) -> bool: ...

    def abort(self, manager: Any, ids: Iterable[str]) -> None: ...


def write_found(order: FoundOrder, manager: Any) -> None:
    """Write the queues and sets as the first call finds them. Earlier changes are not written. The lock is held."""
    write = order.writer.write_found
    for request in list(manager.requests.values()):
        order.introduce(request)
    write(*config.reserve(manager))
    cache = FoundCache(manager)
    cache.write(write)
    for number, (mark, request) in enumerate(leaving_requests(manager)):
        order.leaving_requests[mark, request.request_id] = number
        write("leaving", None, number, 0, 0, len(request.block_tables), *cache.leaf_of(request))
    for request in manager.running:
        need = request.need_prefill_tokens
        prefill_fields = min(request.num_computed_tokens, need), need, len(request.block_tables)
        state = *prefill_fields, *cache.leaf_of(request)
        write("running", request.request_id, request.num_total_tokens, *state)
        order.fresh[request.request_id] = request
    for request in manager.waiting:
        if request.status.name == "PREEMPTED":
            write("requeued", request.request_id, request.num_total_tokens)
        else:
            order.write("queued", request.request_id)
    for place, ids in (
        ("preempted", manager.to_be_rescheduled_request_id_set),
        ("aborting", manager.to_be_aborted_req_id_set),
    ):
        for request_id in ids:
            request = manager.requests.get(request_id)
            write(place, *((None, -1) if request is None else (request_id, request.num_total_tokens)))
    order.abort(manager, manager.waiting_abort_req_id_set)
    for request_id in order.roles.find(manager):
        request = manager.requests[request_id]
        state = request.num_computed_tokens, request.need_prefill_tokens, len(request.block_tables)
        write("preallocated", request_id, request.num_total_tokens, *state, *cache.leaf_of(request))


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
