"""FastDeploy, the engine's side: what `ResourceManagerV1` decides (engine/sched/resource_manager_v1.py).

`schedule()` runs in a thread of the engine process and holds `self.lock`. Its figures are read from its Python frame
while it holds the lock, in the last call that it makes before it returns. Trace frames are written after its return.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Iterable

from . import fastdeploy_config as config
from . import fastdeploy_reasons as reasons
from . import wire
from .fastdeploy_order import FastDeployOrder
from .fastdeploy_roles import Roles
from .hooks import Hook
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

MODULE, CLASS = "fastdeploy.engine.sched.resource_manager_v1", "ResourceManagerV1"

LAST, LAST_OF_OLDER = reasons.LAST_METHODS
"""`update_metrics()` is called by other methods too."""

STAMP = "_fdtrace"
"""Attribute of a scheduled task: (the engine's token, the call's number). It survives the pickling to the workers."""


class CallOutcome:
    """What one call of `schedule()` had decided when it was about to return. It is read under the lock."""

    def __init__(self, manager: Any, names: dict[str, Any], num_preallocated: int) -> None:
        self.preallocated = num_preallocated
        self.left = names.get("token_budget")
        self.budget = config.budget(manager.config, names)
        self.running, self.waiting = len(manager.running), len(manager.waiting)
        self.free = len(manager.cache_manager.gpu_free_block_list)
        skipped = names.get("skip_requests")
        self.skipped = [(request.request_id, _why_skipped(request)) for request in skipped] if skipped else []
        self.reason, self.missing, self.head = "", -1, ""
        if self.waiting:
            self.head = manager.waiting[0].request_id
            self.reason, self.missing = reasons.head_refusal(manager, names)
        ratio = getattr(manager, "new_token_ratio", None)
        if ratio is not None:
            self.reservation, self.flags = int(ratio * 1e6), wire.RATIO
        else:
            self.reservation, self.flags = getattr(manager, "current_reserve_output_block_num", -1), 0


class TasksOfCall:
    """Counts of one call's tasks: chunks and their tokens, chunks that end a prefill or begin one, decodes that got
    blocks, requests that left.
    """

    __slots__ = ("aborted", "admitted", "chunk_tokens", "chunks", "completed", "extended", "preempted")

    def __init__(self) -> None:
        self.chunks = self.chunk_tokens = self.completed = self.admitted = 0
        self.extended = self.preempted = self.aborted = 0


class FastDeployAdapter:
    """Hooks `ResourceManagerV1`. A process has one: each data-parallel rank is a process."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.order = FastDeployOrder(agent, MODULE, CLASS)
        self.hooks = (
            Hook(MODULE, CLASS, "add_request", self.before_add_request),
            Hook(MODULE, CLASS, "schedule", self.before_schedule, self.after_schedule),
            Hook(MODULE, CLASS, LAST, self.before_return),
            Hook(MODULE, CLASS, LAST_OF_OLDER, self.before_return, unless=LAST),
            Hook(MODULE, CLASS, "_free_blocks", self.before_free),
            Hook(MODULE, CLASS, "finish_requests", self.before_finish, self.after_finish),
            Hook(MODULE, CLASS, "recycle_abort_task", self.before_recycle, self.after_finish),
            *self.order.hooks,
            *Roles(self, MODULE, CLASS).hooks,
        )
        self.active = False
        self.code: str | None = None
        """A digest of the scheduler's source; empty: it cannot be computed."""

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.manager: Any = None
        self.active = self.scheduling = False
        self.token = (os.getpid() << 40 ^ time.time_ns()) & (1 << 62) - 1
        self.call = -1
        self.seen: CallOutcome | None = None
        self.freed: dict[str, tuple[Any, int]] = {}
        self.skipped: set[str] = set()
        self.prefilling: set[str] = set()
        """Running requests that are in their prefill."""
        self.order.begin(writer)

    def end(self) -> None:
        """The recording has ended."""
        self.order.end()

    def describe(self) -> dict[str, Any]:
        row = config.describe(self.manager.config, self.manager)
        keeps = config.keeps_aborted_slots(self.manager)
        if keeps is not None:
            row["config"]["keeps_aborted_slots"] = keeps
        if self.code is None:  # each segment of the ring has a description; files are read once
            self.code = config.code_digest(self.manager, self.manager.cache_manager) or ""
        if self.code:
            row["config"]["scheduler_code"] = self.code
        return dict(row, part="engine", token=self.token, ts=time.time_ns())

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        for request in list(self.manager.running):
            if request.idx is not None:
                yield request.idx, config.running_row(request)

    def _arrived(self, request: Any, ts: int) -> None:
        limit = config.max_tokens(request)
        self.writer.request(request.request_id, ts, request.prompt_token_ids_len or 0, limit)

    def before_add_request(self, manager: Any, args: Any, kwargs: Any) -> None:
        self.order.watch(manager)
        request = args[0] if args else kwargs["request"]
        if request.request_id not in self.writer.numbers:
            self._arrived(request, config.received_at(request))
            self.order.hashes(request)

    def before_schedule(self, manager: Any, args: Any, kwargs: Any) -> tuple[int, int] | None:
        if self.manager is None:
            self.manager, self.active = manager, True
            self.order.watch(manager)
            for request in list(manager.requests.values()):
                self.order.introduce(request)
            self._take_in(manager)
        elif manager is not self.manager:
            return None
        self.order.watch(manager)
        if self.seen is not None:  # the last call raised an error after it had decided: its number is used
            self.seen = None
            self.call += 1
        self.order.call = self.call + 1
        self.writer.boundary()
        self.scheduling = True
        self.freed.clear()
        return time.time_ns(), time.perf_counter_ns()

    def _take_in(self, manager: Any) -> None:
        """Take in what runs already: a recording may begin at any moment."""
        running = list(manager.running)
        self.prefilling.update(r.request_id for r in running if r.num_computed_tokens < r.need_prefill_tokens)

    def before_return(self, manager: Any, args: Any, kwargs: Any) -> None:
        """At the last call that `schedule()` makes: its frame holds all its decisions, and its lock is held."""
        if self.scheduling and self.seen is None and manager is self.manager:
            caller = sys._getframe(2)  # this method, its wrapper, then their caller
            if caller.f_code.co_name == "schedule":
                names = caller.f_locals
                self.seen = CallOutcome(manager, names, len(self.order.roles.preallocated))
                if self.order.begun:
                    try:
                        self.order.decided(manager, names)
                    except Exception as error:
                        self.order.fail(error)

    def before_free(self, manager: Any, args: Any, kwargs: Any) -> None:
        if self.scheduling:
            request = args[0] if args else kwargs["request"]
            self.freed[request.request_id] = request, len(request.block_tables)
            self.order.freed_tokens[request.request_id] = request.num_total_tokens

    def after_schedule(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is None:
            return
        duration = (time.perf_counter_ns() - token[1]) // 1000
        self.scheduling = False
        seen, self.seen = self.seen, None
        if seen is None:
            raise RuntimeError("schedule() returned without update_metrics(): not a FastDeploy that is known")
        tasks, errors = result if isinstance(result, tuple) else (result, ())
        if not (len(tasks) or len(errors) or seen.running or seen.waiting or seen.preallocated):
            return
        self.call += 1
        prefilling = len(self.prefilling)
        counts = self._tasks(manager, tasks)
        for request_id, message in errors:
            self.writer.event("error", request_id, str(message)[:200])
            self.writer.finish(request_id, "error", 0)
        if seen.skipped:
            self._skips(seen.skipped)
        flags = seen.flags if len(tasks) else seen.flags | wire.EMPTY
        figures = self._figures(manager, seen, counts, prefilling)
        self.writer.schedule(self.call, token[0], duration, seen.reason, figures, flags)

    def _tasks(self, manager: Any, tasks: Any) -> TasksOfCall:
        """Stamp the tasks, write the preemptions and aborts among them as events, and count them."""
        stamp = (self.token, self.call)
        counts = TasksOfCall()
        for task in tasks:
            setattr(task, STAMP, stamp)
            # Not `name`: that is a property, ten times slower.
            kind, request_id = task.task_type._name_, task.request_id
            if kind == "DECODE":
                counts.extended += 1
            elif kind == "PREFILL":
                counts.chunk_tokens += task.prefill_end_index - task.prefill_start_index
                counts.chunks += 1
                counts.admitted += request_id not in self.prefilling
                if task.prefill_end_index >= task.need_prefill_tokens:
                    counts.completed += 1
                    self.prefilling.discard(request_id)
                else:
                    self.prefilling.add(request_id)
                self.skipped.discard(request_id)
            elif kind == "PREEMPTED":
                counts.preempted += 1
                self.prefilling.discard(request_id)
                self._preempted(manager, request_id)
            elif kind == "ABORT":
                counts.aborted += 1
                self.prefilling.discard(request_id)
                self.writer.event("aborted", request_id)
        return counts

    def _preempted(self, manager: Any, request_id: str) -> None:
        request, blocks = self.freed.get(request_id, (manager.requests.get(request_id), None))
        detail = {"num_blocks": blocks}
        if request is not None:
            detail["num_computed_tokens"] = max(request.num_total_tokens - 1, 0)
        self.writer.event("preempted", request_id, "blocks", detail)
        if manager.config.scheduler_config.splitwise_role == "decode":
            # In this role it is not put back: FastDeploy answers it with error 502 (engine/common_engine.py).
            self.writer.finish(
                request_id, "error", len(request.output_token_ids) if request is not None else 0
            )

    def _skips(self, skipped: list[tuple[str, str]]) -> None:
        """Write for each request once that it was skipped, not at each call that skips it."""
        for request_id, reason in skipped:
            if request_id not in self.skipped:
                self.skipped.add(request_id)
                self.writer.event("skipped", request_id, reason)

    def _figures(
        self, manager: Any, seen: CallOutcome, counts: TasksOfCall, prefilling: int
    ) -> tuple[int, ...]:
        start, reserved, decodes = seen.budget
        counted = -1
        if seen.left is not None and start is not None:
            charged = start - seen.left - counts.chunk_tokens
            counted = reserved + start - seen.left
            if decodes < 0 and seen.left > 0:
                decodes = charged + counts.aborted
        if decodes < 0:  # the loop ended early: count requests past their prefill as it found them
            past_prefill = sum(
                1 for r in list(manager.running) if r.num_computed_tokens >= r.need_prefill_tokens
            )
            decodes = past_prefill - counts.completed + counts.aborted + counts.preempted
        mixed = manager.config.scheduler_config.splitwise_role == "mixed"
        return (  # a plain tuple in the order of `wire.CallFigures`, which takes 10 us longer cold
            -1 if start is None else max(start, 0),  # token_budget
            counted,  # num_scheduled_tokens
            seen.running,  # num_running
            decodes,  # num_running_decodes
            prefilling,  # num_prefilling
            seen.waiting,  # num_waiting
            len(seen.skipped),  # num_deferred
            -1 if mixed else seen.preallocated,  # num_preallocated
            counts.chunks,  # num_chunks
            counts.admitted,  # num_admitted
            counts.extended,  # num_extended
            counts.preempted,  # num_preempted
            counts.aborted,  # num_aborted
            seen.free,  # num_free_blocks
            manager.cache_manager.num_gpu_blocks,  # num_blocks
            seen.missing,  # num_missing_blocks
            self.writer.numbers.get(seen.head, -1),  # head
            seen.reservation,  # reservation
            -1,  # cache_read_budget
            -1,  # num_cache_read_tokens
            -1,  # input_budget
            -1,  # num_input_tokens
        )

    def before_finish(self, manager: Any, args: Any, kwargs: Any) -> list[tuple[str, str, int]]:
        ids = args[0] if args else kwargs["request_ids"]
        ending = []
        for request_id in (ids,) if isinstance(ids, str) else list(ids):
            request = manager.requests.get(request_id)
            if request is not None and manager is self.manager:
                output_tokens = len(request.output_token_ids)
                limit = config.max_tokens(request)
                reason = "length" if 0 < limit <= output_tokens else "stop"
                ending.append((request_id, reason, output_tokens))
        return ending

    def before_recycle(self, manager: Any, args: Any, kwargs: Any) -> list[tuple[str, str, int]]:
        request_id = args[0] if args else kwargs["request_id"]
        request = manager.requests.get(request_id)
        is_known = request is not None and manager is self.manager
        return [(request_id, "abort", len(request.output_token_ids))] if is_known else []

    def after_finish(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        for request_id, reason, output_tokens in token or ():
            if request_id not in manager.requests and request_id in self.writer.numbers:
                self.writer.finish(request_id, reason, output_tokens)
                self.prefilling.discard(request_id)
                self.order.roles.preallocated.pop(request_id, None)


def _why_skipped(request: Any) -> str:
    return "preprocessing" if getattr(request, "async_process_futures", None) else "no tokens fit"
