"""FastDeploy: the order in which the engine met its events, by the holds of `ResourceManagerV1.lock`.

Every change of the queues, of the sets beside them and of the KV blocks happens while that lock is held. A method's
change comes later than its entry: it waits for the lock, and `finish_requests` takes the lock twice, with calls of
`schedule()` in between. So a stand-in for the lock reports each section when it ends. Tokens are appended without the
lock: what a call of `schedule()` knew is in `num_computed_tokens`, which its loop sets to all tokens but the last.
"""

from __future__ import annotations

import time
from types import FrameType
from typing import TYPE_CHECKING, Any, Iterable

from . import fastdeploy_config as config
from .checkpoint_times import CheckpointTimes
from .fastdeploy_found import write_checkpoint, write_found
from .fastdeploy_lock import Handler, ReportingLock
from .fastdeploy_roles import RoleSections
from .hooks import Hook
from .order import CallDecision, OrderWriter

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

THRESHOLD = "_get_can_schedule_prefill_threshold_block"
"""Free blocks that `schedule()` asks for before it schedules a prefill chunk."""

BY_RATIO = "_get_running_request_reserve_blocks"
"""If a version has this method, the threshold depends on outputs appended meanwhile; else only on the queues."""


class FastDeployOrder:
    """Observes the sections of one manager's lock, and passes what happened to an `OrderWriter`."""

    def __init__(self, agent: Agent, module: str, cls: str) -> None:
        self.agent = agent
        self.hooks = (
            Hook(module, cls, THRESHOLD, after=self.after_threshold, only=BY_RATIO),
            Hook(module, cls, "cache_output_tokens", self.before_output_cached),
            Hook(module, cls, "reschedule_preempt_task", self.before_requeue),
        )
        self.manager: Any = None
        self.stand_in: ReportingLock | None = None
        self.entering: dict[str, Handler] = {
            "schedule": self._schedule_begins,
            "reschedule_preempt_task": self._about_to_reschedule,
            "recycle_abort_task": self._about_to_recycle,
        }
        self.ending: dict[str, Handler] = {
            "add_request": self._added,
            "add_abort_req_ids": self._abort_wanted,
            "reschedule_preempt_task": self._rescheduled,
            "recycle_abort_task": self._recycled,
            "finish_requests": self._finishing,
            "cache_output_tokens": self._output_cached,
        }
        self.roles = RoleSections(self.write)
        self.entering.update(self.roles.entering)
        self.ending.update(self.roles.ending)

    def begin(self, writer: Writer) -> None:
        """A recording begins."""
        self.ring, self.writer = writer, OrderWriter(writer)
        self.begun = self.valid = self.failed = False
        self.call = self.next_call = 0
        """Numbers of the call under way (if it finds or does something), and of the call after it."""
        self.ts = 0
        self.running: dict[str, Any] = {}
        """The running queue as a reader of the frames knows it."""
        self.computed: list[int] = []
        """Computed tokens of each of these, as written last."""
        self.whole_queue = True
        """Whether the next frame must name the whole running queue."""
        self.fresh: dict[str, Any] = {}
        """Requests of which no token has been seen since their admission."""
        self.started: list[str] = []
        self.needed_blocks: list[int] = []
        self.freed_tokens: dict[str, int] = {}
        self.leaving_requests: dict[tuple[int, str], int | None] = {}
        """Out of the running queue, but with their blocks: keys are (frame id of its `finish_requests`, request id). A
        number: it had left before the first call, and these are numbered."""
        self.num_leaving = 0
        """How many got such a number."""
        self.unknown_aborts: set[str] = set()
        self.roles.begin()
        self.checkpoints = CheckpointTimes(self.agent.session)
        self.next_checkpoint = self.checkpoints.after(time.time_ns())

    def watch(self, manager: Any) -> None:
        """Put the stand-in in place of a manager's lock, once."""
        if self.manager is None and not self.failed:
            self.manager = manager
            self.stand_in = ReportingLock(manager.lock, self)
            manager.lock = self.stand_in

    def end(self) -> None:
        """Put the lock back in its place."""
        manager, stand_in = self.manager, self.stand_in
        self.manager = self.stand_in = None
        self.begun = False
        if stand_in is not None:
            stand_in.order = None
            if manager.lock is stand_in:
                manager.lock = stand_in.lock

    def after_threshold(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        self.needed_blocks.append(result)

    def before_output_cached(self, manager: Any, args: Any, kwargs: Any) -> None:
        self.hashes(args[0] if args else kwargs["request"])

    def before_requeue(self, manager: Any, args: Any, kwargs: Any) -> None:
        """Its output is prefilled again with its prompt, and so enters the prefix cache."""
        request = manager.requests.get(args[0] if args else kwargs["request_id"])
        if request is not None:
            self.hashes(request)

    def hashes(self, request: Any) -> None:
        """Write the hashes of the full blocks of a request's prompt and of its output so far."""
        if self.manager is not None and request.request_id in self.ring.numbers:
            fd_config = self.manager.config
            hashes = config.block_hashes(fd_config, request, request.output_token_ids)
            if hashes:
                self.ring.hashes(request.request_id, fd_config.cache_config.block_size, hashes)

    def introduce(self, request: Any) -> None:
        """Write a request that arrived before the recording could see it."""
        if request.request_id not in self.ring.numbers:
            limit = config.max_tokens(request)
            self.ring.request(request.request_id, -1, request.prompt_token_ids_len or 0, limit)
            self.hashes(request)

    # Called by the stand-in while the lock is held --------------------------------------------------------------

    def report(self, handler: Handler, frame: FrameType) -> None:
        """A section begins or ends in the function of `frame`."""
        agent = self.agent
        if not agent.on or not agent.mark[0]:
            return  # this is a child of the recorded process, or nothing is recorded
        try:
            with agent.lock:
                if agent.on and self.manager is not None:
                    handler(self.manager, frame)
        except Exception as error:
            with agent.lock:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """The recording goes on without the order. The caller holds the agent's lock. This raises no error: the engine
        is about to go on.
        """
        self.failed = True
        self.end()
        if self.agent.on and self.agent.writer is not None:
            why = "order of calls: %s: %s" % (type(error).__name__, error)
            try:
                self.agent.writer.event("lost", reason=why[:500])
            except Exception:
                pass  # the ring failed: the next hooked call finds that too, and ends the recording

    # Sections of `schedule()` -----------------------------------------------------------------------------------

    def _schedule_begins(self, manager: Any, frame: FrameType) -> None:
        self.ts = time.time_ns()
        if not self.begun:
            self.begun = True
            write_found(self, manager)
        elif self.ts >= self.next_checkpoint:
            self.next_checkpoint = self.checkpoints.after(self.ts)
            self.ring.end_idle()  # a trace that begins here has no part of a run of idle calls
            write_checkpoint(self, manager)
        self.needed_blocks = []
        self.freed_tokens.clear()
        fresh = self.fresh
        self.started = [name for name, request in fresh.items() if _has_token(request)] if fresh else []
        for request_id in self.started:
            del fresh[request_id]

    def decided(self, manager: Any, names: dict[str, Any]) -> None:
        """`schedule()` is about to return, which ends its section. `names` are its local variables. The caller holds
        the agent's lock, and calls this if a state was `begun`.
        """
        tasks, errors = names["scheduled_reqs"], names.get("error_reqs", ())
        skipped = names.get("skip_requests", ())
        running = manager.running
        if not (tasks or errors or running or manager.waiting or self.roles.preallocated):
            return
        self.next_call = self.call + 1
        chunks, extended, preempted, aborted = self._take(manager, tasks)
        if self.whole_queue or not self._follows(running):
            self.whole_queue = True
            self.running = {request.request_id: request for request in running}
        computed_before, self.computed = self.computed, [request.num_computed_tokens for request in running]
        has_changes = self.whole_queue or tasks or skipped or errors or self.started or self.needed_blocks
        if not has_changes and self.computed == computed_before:
            return
        needed, refused = self.needed_blocks, None
        if len(needed) == len(chunks) + 1:
            refused = names["request"].request_id  # its loops end at the request that they refuse
        elif len(needed) != len(chunks):
            needed = []
        self.writer.decided(
            CallDecision(
                self.call, self.ts, chunks, extended, preempted, aborted,
                [r.request_id for r in skipped if getattr(r, "async_process_futures", None)] if skipped else [],
                [request_id for request_id, _ in errors] if errors else [],
                self.started, needed, refused, self.computed,
            ),
            list(self.running) if self.whole_queue or self.writer.wants_whole else None,
        )  # fmt: skip
        self.started, self.whole_queue = [], False

    def _follows(self, running: list[Any]) -> bool:
        """Whether the running queue follows from what was written. Compares the length and both ends."""
        queue = self.running
        if len(running) != len(queue):
            return False
        return not running or (
            running[0] is next(iter(queue.values())) and running[-1] is next(reversed(queue.values()))
        )

    def _take(
        self, manager: Any, tasks: Any
    ) -> tuple[list[Any], list[str], list[tuple[str, int]], list[str]]:
        """Chunks, extended decodes, preempted and aborted requests, in the form of `CallDecision`."""
        chunks, extended, preempted, aborted = [], [], [], []
        fresh = self.fresh
        for task in tasks:
            # Not `name`: that is a property, and an enum's takes as long as the rest of this loop.
            kind, request_id = task.task_type._name_, task.request_id
            if kind == "DECODE":
                extended.append(request_id)
                if request_id in fresh and _has_token(fresh[request_id]):  # it came before the loop
                    self.started.append(request_id)
                    del fresh[request_id]
            elif kind == "PREFILL":
                chunks.append((request_id, task.prefill_start_index, task.prefill_end_index))
                fresh[request_id] = self.running[request_id] = task
            elif kind == "PREEMPTED":
                self._forget(request_id)
                preempted.append((request_id, self._tokens_when_freed(manager, request_id)))
            elif kind == "ABORT":
                self._forget(request_id)
                aborted.append(request_id)
        return chunks, extended, preempted, aborted

    def write(self, kind: str, request_id: str | None, num_total_tokens: int = -1) -> bool:
        return self.writer.event(self.next_call, kind, request_id, num_total_tokens)

    def _forget(self, request_id: str) -> None:
        """A request left the running queue."""
        self.fresh.pop(request_id, None)
        self.running.pop(request_id, None)

    def _tokens_when_freed(self, manager: Any, request_id: str) -> int:
        num_tokens = self.freed_tokens.get(request_id)
        if num_tokens is None:
            request = manager.requests.get(request_id)
            num_tokens = -1 if request is None else request.num_total_tokens
        return num_tokens

    # Other sections ---------------------------------------------------------------------------------------------

    def _added(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request"].request_id
        self.write("queued", request_id)
        if request_id in self.unknown_aborts:
            self.unknown_aborts.discard(request_id)
            self.write("abort_wanted", request_id)

    def _abort_wanted(self, manager: Any, frame: FrameType) -> None:
        ids = frame.f_locals["req_ids"]
        self.abort(manager, ids if isinstance(ids, list) else [ids])

    def abort(self, manager: Any, ids: Iterable[str]) -> None:
        for request_id in ids:
            if request_id in manager.requests:
                self.write("abort_wanted", request_id)
            else:
                self.unknown_aborts.add(request_id)

    def _about_to_reschedule(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request_id"]
        self.valid = request_id in manager.to_be_rescheduled_request_id_set and request_id in manager.requests

    def _rescheduled(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request_id"]
        if self.valid:
            self.write("requeued", request_id, manager.requests[request_id].num_total_tokens)

    def _about_to_recycle(self, manager: Any, frame: FrameType) -> None:
        request_id = frame.f_locals["request_id"]
        self.valid = request_id in manager.to_be_aborted_req_id_set and request_id in manager.requests

    def _recycled(self, manager: Any, frame: FrameType) -> None:
        if self.valid:
            self.write("recycled", frame.f_locals["request_id"])

    def _finishing(self, manager: Any, frame: FrameType) -> None:
        """The first section takes requests out of the queues. The second gives their blocks back."""
        ids, mark = frame.f_locals["request_ids"], id(frame)
        for request_id in (ids,) if isinstance(ids, str) else tuple(ids):
            if (mark, request_id) in self.leaving_requests:
                number = self.leaving_requests.pop((mark, request_id))
                self.write("freed", *((request_id,) if number is None else (None, number)))
            elif request_id not in manager.requests and self.write("left", request_id):
                self.leaving_requests[mark, request_id] = None
                self._forget(request_id)

    def _output_cached(self, manager: Any, frame: FrameType) -> None:
        request = frame.f_locals["request"]
        self.write("output_cached", request.request_id, request.num_total_tokens)


def _has_token(request: Any) -> bool:
    """Whether a running request has a token since its admission. In release 2.6 its status changes a moment earlier."""
    return bool(request.num_total_tokens > request.need_prefill_tokens)
