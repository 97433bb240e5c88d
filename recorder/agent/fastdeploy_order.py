"""FastDeploy: the order in which the engine met its events, by the holds of `ResourceManagerV1.lock`.

Every change of the queues, of the sets beside them and of the KV blocks happens while that lock is held. The entry of
a method is not its moment: it waits for the lock, and `finish_requests` takes it twice, with calls of `schedule()` in
between. So a stand-in for the lock tells each section as it ends. Tokens are appended without the lock; what a call of
`schedule()` knew of them stands in `num_computed_tokens` afterwards, as its loop sets that to all but the last token.
"""

from __future__ import annotations

import sys
import time
from operator import is_
from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

if TYPE_CHECKING:
    from .control import Agent


class StandIn:
    """In place of a manager's lock: the same lock, with `order` looking on.

    It can take the lock's place at any moment: whoever holds the lock then, holds this one. It is taken by `with` alone
    in FastDeploy; all else goes to the lock itself, unseen.
    """

    def __init__(self, lock: Any, order: Order) -> None:
        self.lock, self.order = lock, order  # type: Any, Order | None

    def __enter__(self) -> Any:
        entered = self.lock.__enter__()
        order = self.order
        if order is not None:
            try:
                order.entered(sys._getframe(1))
            except BaseException:  # a KeyboardInterrupt: nobody would give the lock back
                self.lock.__exit__(None, None, None)
                raise
        return entered

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        try:
            order = self.order
            if order is not None:
                order.leaving(sys._getframe(1), kind is not None)
        finally:
            self.lock.__exit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)


class Decided(NamedTuple):
    """What one call of `schedule()` decided, and what it knew; requests by their ids.

    `computed` are the running requests' `num_computed_tokens` after the call, in the order of `running` (None: the
    running queue is that of the call before); `started` are those that have a token since their admission and had none
    in the call before. `needed_blocks`: each admission threshold that it computed (release 2.6).
    """

    ts: int
    chunks: list[tuple[str, int, int]]
    extended: list[str]
    preempted: list[tuple[str, int]]
    """Each with its tokens when it lost its blocks."""
    aborted: list[str]
    not_ready: list[str]
    failed: list[str]
    started: list[str]
    needed_blocks: list[int]
    running: list[str] | None
    computed: list[int]
    num_running: int
    num_waiting: int
    num_free_blocks: int


class Order:
    """Looks on while one manager's lock is held, and tells `sink` what happened.

    `sink.event(kind, request_id, tokens)` hears of `queued`, `abort_wanted`, `rescheduled`, `left`, `freed`, `recycled`
    and `output_cached`; `sink.decided(Decided)` of each call that found or did something.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.manager: Any = None
        self.stand_in: StandIn | None = None
        self.entering: dict[str, Callable[[Any, Any], None]] = {
            "schedule": self._schedule_begins,
            "reschedule_preempt_task": self._about_to_reschedule,
            "recycle_abort_task": self._about_to_recycle,
        }
        self.ending: dict[str, Callable[[Any, Any], None]] = {
            "schedule": self._schedule_ends,
            "add_request": self._added,
            "add_abort_req_ids": self._abort_wanted,
            "reschedule_preempt_task": self._rescheduled,
            "recycle_abort_task": self._recycled,
            "finish_requests": self._finishing,
            "cache_output_tokens": self._output_cached,
        }

    def begin(self, sink: Any) -> None:
        """A recording begins."""
        self.sink = sink
        self.there = False
        self.ts = 0
        self.running: list[Any] = []
        self.fresh: dict[str, Any] = {}
        """Admitted, and no token of theirs has been seen since."""
        self.started: list[str] = []
        self.needed_blocks: list[int] = []
        self.freed_tokens: dict[str, int] = {}
        self.leaving_requests: dict[tuple[int, str], None] = {}
        """Out of the running queue, with their blocks: by the call of `finish_requests` that took them out."""
        self.unknown_aborts: set[str] = set()

    def watch(self, manager: Any) -> None:
        """Take the place of a manager's lock."""
        if self.manager is None:
            self.manager = manager
            self.stand_in = StandIn(manager.lock, self)
            manager.lock = self.stand_in

    def end(self) -> None:
        """Give the lock its place back."""
        manager, stand_in = self.manager, self.stand_in
        self.manager = self.stand_in = None
        if stand_in is not None:
            stand_in.order = None
            if manager.lock is stand_in:
                manager.lock = stand_in.lock

    # What the stand-in tells, the lock being held ---------------------------------------------------------------

    def entered(self, frame: FrameType) -> None:
        """A section of the lock begins, in the function of `frame`."""
        handler = self.entering.get(frame.f_code.co_name)
        if handler is not None:
            self._guarded(handler, frame)

    def leaving(self, frame: FrameType, failed: bool) -> None:
        """It ends; `failed`: with an exception."""
        handler = self.ending.get(frame.f_code.co_name)
        if handler is not None and not failed:
            self._guarded(handler, frame)

    def _guarded(self, handler: Callable[[Any, Any], None], frame: FrameType) -> None:
        agent = self.agent
        try:
            with agent.lock:
                if agent.on and self.manager is not None:
                    handler(self.manager, frame)
        except Exception as error:
            agent.switch_off(error)

    # Sections of `schedule()` -----------------------------------------------------------------------------------

    def _schedule_begins(self, manager: Any, frame: FrameType) -> None:
        self.ts = time.time_ns()
        self.needed_blocks.clear()
        self.freed_tokens.clear()
        self.started = [request_id for request_id, request in self.fresh.items() if _has_token(request)]
        for request_id in self.started:
            del self.fresh[request_id]

    def _schedule_ends(self, manager: Any, frame: FrameType) -> None:
        names = frame.f_locals
        tasks, errors = names["scheduled_reqs"], names.get("error_reqs", ())
        skipped = names.get("skip_requests", ())
        running, waiting = manager.running, manager.waiting
        if not (tasks or errors or running or waiting or skipped):
            return
        chunks: list[tuple[str, int, int]] = []
        lists: dict[str, list[str]] = {"DECODE": [], "PREEMPTED": [], "ABORT": []}
        for task in tasks:
            kind = task.task_type.name
            if kind == "PREFILL":
                chunks.append((task.request_id, task.prefill_start_index, task.prefill_end_index))
                self.fresh[task.request_id] = task
            elif kind in lists:
                lists[kind].append(task.request_id)
        for request_id in lists["PREEMPTED"] + lists["ABORT"]:
            self.fresh.pop(request_id, None)
        same = len(running) == len(self.running) and all(map(is_, running, self.running))
        if not same:
            self.running = list(running)
        self.sink.decided(
            Decided(
                self.ts,
                chunks,
                lists["DECODE"],
                [
                    (request_id, self._tokens_when_freed(manager, request_id))
                    for request_id in lists["PREEMPTED"]
                ],
                lists["ABORT"],
                [
                    request.request_id
                    for request in skipped
                    if getattr(request, "async_process_futures", None)
                ],
                [request_id for request_id, _ in errors],
                self.started,
                list(self.needed_blocks),
                None if same else [request.request_id for request in running],
                [request.num_computed_tokens for request in running],
                len(running),
                len(waiting),
                len(manager.cache_manager.gpu_free_block_list),
            )
        )
        self.started = []

    def _tokens_when_freed(self, manager: Any, request_id: str) -> int:
        known = self.freed_tokens.get(request_id)
        if known is None:
            request = manager.requests.get(request_id)
            known = -1 if request is None else request.num_total_tokens
        return known

    # Other sections ---------------------------------------------------------------------------------------------

    def _added(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request"].request_id
        self.sink.event("queued", request_id, -1)
        if request_id in self.unknown_aborts:
            self.unknown_aborts.discard(request_id)
            self.sink.event("abort_wanted", request_id, -1)

    def _abort_wanted(self, manager: Any, frame: FrameType) -> None:
        asked = frame.f_locals["req_ids"]
        for request_id in asked if isinstance(asked, list) else [asked]:
            if request_id in manager.requests:
                self.sink.event("abort_wanted", request_id, -1)
            else:
                self.unknown_aborts.add(request_id)

    def _about_to_reschedule(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request_id"]
        self.there = request_id in manager.to_be_rescheduled_request_id_set and request_id in manager.requests

    def _rescheduled(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request_id"]
        if self.there:
            self.sink.event("rescheduled", request_id, manager.requests[request_id].num_total_tokens)

    def _about_to_recycle(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request_id"]
        self.there = request_id in manager.to_be_aborted_req_id_set and request_id in manager.requests

    def _recycled(self, manager: Any, frame: FrameType) -> None:
        if self.there:
            self.sink.event("recycled", frame.f_locals["request_id"], -1)

    def _finishing(self, manager: Any, frame: FrameType) -> None:
        """The first section takes requests out of the queues, the second gives their blocks back."""
        asked, mark = frame.f_locals["request_ids"], id(frame)
        for request_id in (asked,) if isinstance(asked, str) else tuple(asked):
            if (mark, request_id) in self.leaving_requests:
                del self.leaving_requests[mark, request_id]
                self.sink.event("freed", request_id, -1)
            elif request_id not in manager.requests:
                if self.sink.event("left", request_id, -1):
                    self.leaving_requests[mark, request_id] = None
                self.fresh.pop(request_id, None)

    def _output_cached(self, manager: Any, frame: FrameType) -> None:
        request = frame.f_locals["request"]
        self.sink.event("output_cached", request.request_id, request.num_total_tokens)


def _has_token(request: Any) -> bool:
    """Whether a running request has made a token since its admission: release 2.6 says so in its status."""
    status = request.status.name
    if status.startswith("RUNNING_"):
        return bool(status == "RUNNING_DECODE")
    return bool(request.num_total_tokens > request.need_prefill_tokens)
