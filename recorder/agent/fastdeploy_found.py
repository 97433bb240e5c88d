"""FastDeploy: what a call finds in the queues, the sets beside them, and the block pool.

The first recorded call writes it, and for a flight recorder a call now and then: a trace can begin with each of these.

A request that is between the two sections of `finish_requests` (engine/sched/resource_manager_v1.py) is in no queue.
The first section takes it out of them, the second gives its blocks back. In between, only the thread that runs the
method knows it, in a local variable.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Iterable, Protocol

from . import fastdeploy_config as config
from .fastdeploy_cache import MOST_BLOCKS_AGAIN, PrefixCacheReader
from .wire_order import LEAVING, PLACES, WHOLE

if TYPE_CHECKING:
    from .fastdeploy_roles import RoleSections
    from .order import OrderWriter

Write = Callable[..., None]
"""Takes a place of `wire_order.PLACES`, a request id or None, and the values of a frame."""


class OrderAtStart(Protocol):
    """The part of `FastDeployOrder` that is filled with what the first call finds."""

    writer: OrderWriter
    roles: RoleSections
    call: int
    fresh: dict[str, Any]
    leaving_requests: dict[tuple[int, str], int | None]
    num_leaving: int

    def introduce(self, request: Any) -> None: ...

    def write(self, kind: str, request_id: str | None) -> bool: ...

    def abort(self, manager: Any, ids: Iterable[str]) -> None: ...


def write_found(order: OrderAtStart, manager: Any) -> None:
    """Write the queues and sets as the first call finds them. Earlier changes are not written. The lock is held."""
    write = order.writer.write_found
    cache = _write_pool(order, manager, write)
    _write_leaving(order, manager, write, cache)
    _write_queues(manager, write, cache, partial(order.write, "queued"))
    order.fresh.update((request.request_id, request) for request in manager.running)
    order.abort(manager, manager.waiting_abort_req_id_set)
    _write_preallocated(manager, write, cache, order.roles.find(manager))


def write_checkpoint(order: OrderAtStart, manager: Any) -> None:
    """Write the queues and sets again, as the call under way finds them. The lock is held.

    Nothing else is changed: what is written later is the same as without it.
    """
    num_frames = 0

    def write(place: str, request_id: str | None, value: int, *more: int) -> None:
        nonlocal num_frames
        values = PLACES.index(place), *more
        num_frames += order.writer.event(order.call, "checkpoint", request_id, value, values)

    cache = _write_pool(order, manager, write, MOST_BLOCKS_AGAIN)
    _write_leaving(order, manager, write, cache)
    _write_queues(manager, write, cache, lambda request_id: write("queued", request_id, -1))
    for request_id in manager.waiting_abort_req_id_set:
        if request_id in manager.requests:
            write("abort_wanted", request_id, -1)
    preallocated = [name for name in order.roles.preallocated if name in manager.requests]
    _write_preallocated(manager, write, cache, preallocated)
    order.writer.event(order.call, "checkpoint", None, num_frames, (PLACES.index(WHOLE),))


def _write_pool(
    order: OrderAtStart, manager: Any, write: Write, most_blocks: int | None = None
) -> PrefixCacheReader:
    """Write the requests that are not known yet, what is kept free for running ones, and the prefix cache."""
    for request in list(manager.requests.values()):
        order.introduce(request)
    write(*config.reserve(manager))
    cache = PrefixCacheReader(manager, most_blocks)
    cache.write(write)
    return cache


def _write_leaving(order: OrderAtStart, manager: Any, write: Write, cache: PrefixCacheReader) -> None:
    """Write the requests that have left and hold their blocks, numbered. The recording knows those that left since it
    began: a trace that begins with this call does not.
    """
    for mark, request in leaving_requests(manager):
        number = order.leaving_requests.setdefault((mark, request.request_id), order.num_leaving)
        known = request.request_id if number is None else None
        if number is None:
            number = order.num_leaving
        order.num_leaving = max(order.num_leaving, number + 1)
        write(LEAVING, known, number, 0, 0, len(request.block_tables), *cache.leaf_of(request))


def _write_queues(
    manager: Any, write: Write, cache: PrefixCacheReader, write_queued: Callable[[str], Any]
) -> None:
    for request in manager.running:
        need = request.need_prefill_tokens
        prefill_fields = min(request.num_computed_tokens, need), need, len(request.block_tables)
        state = *prefill_fields, *cache.leaf_of(request)
        write("running", request.request_id, request.num_total_tokens, *state)
    for request in manager.waiting:
        if request.status.name == "PREEMPTED":
            write("requeued", request.request_id, request.num_total_tokens)
        else:
            write_queued(request.request_id)
    for place, ids in (
        ("preempted", manager.to_be_rescheduled_request_id_set),
        ("aborting", manager.to_be_aborted_req_id_set),
    ):
        for request_id in ids:
            request = manager.requests.get(request_id)
            write(place, *((None, -1) if request is None else (request_id, request.num_total_tokens)))


def _write_preallocated(manager: Any, write: Write, cache: PrefixCacheReader, ids: Iterable[str]) -> None:
    for request_id in ids:
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
