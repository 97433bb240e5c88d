"""FastDeploy, the engine's side: what `ResourceManagerV1` decides (engine/sched/resource_manager_v1.py).

`schedule()` runs in a thread of the engine process and holds `self.lock`. Its figures are read while it holds it, from
its own frame, in the last call that it makes before it returns; frames are written after it has returned.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Iterable

from . import fastdeploy_config as config
from . import wire
from .fastdeploy_roles import Roles
from .hooks import Hook
from .writer import Row

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

MODULE, CLASS = "fastdeploy.engine.sched.resource_manager_v1", "ResourceManagerV1"

LAST = "_log_console_scheduler_metrics"
"""What `schedule()` calls last of all but `update_metrics()`, which others call too and versions without it have."""

STAMP = "_fdtrace"
"""Attribute of a scheduled task, (the engine's token, the call's number); it survives the pickling to the workers."""


class Seen:
    """What one call of `schedule()` had decided when it was about to return, read under its lock."""

    def __init__(self, manager: Any, names: dict[str, Any]) -> None:
        self.names = names
        self.left = names.get("token_budget")
        self.running, self.waiting = len(manager.running), len(manager.waiting)
        self.free = len(manager.cache_manager.gpu_free_block_list)
        self.skipped = [
            (request.request_id, _why_skipped(request)) for request in names.get("skip_requests", ())
        ]
        self.reason, self.missing = "", -1
        if self.waiting:
            self.reason, self.missing = self._not_admitted(manager)
        ratio = getattr(manager, "new_token_ratio", None)
        if ratio is not None:
            self.reservation, self.flags = int(ratio * 1e6), wire.RATIO
        else:
            self.reservation, self.flags = getattr(manager, "current_reserve_output_block_num", -1), 0

    def _not_admitted(self, manager: Any) -> tuple[str, int]:
        """Why the head of the waiting queue stayed there, and how many blocks it lacked (-1: that was not why)."""
        names, left = self.names, self.left
        if names.get("preempted_reqs"):
            reason = "preemption"
        elif names.get("chunk_prefill_in_running_not_satisfied"):
            reason = "blocks"
        elif left is None or len(self.skipped) >= self.waiting:
            reason = "other"
        elif left <= 0 or (config.chunking_disabled() and left < manager.waiting[0].need_prefill_tokens):
            reason = "budget"
        elif self._slots_taken(manager) >= manager.max_num_seqs:
            reason = "slots"
        else:
            reason = "blocks" if names.get("request") is manager.waiting[0] else "other"
        return reason, self._missing() if reason == "blocks" else -1

    def _slots_taken(self, manager: Any) -> int:
        queued = sum(1 for request in manager.waiting if request.status.name == "PREEMPTED")
        leaving = len(manager.to_be_rescheduled_request_id_set) + len(manager.to_be_aborted_req_id_set)
        return self.running + leaving + queued

    def _missing(self) -> int:
        wanted = self.names.get("can_schedule_block_num_threshold")
        return max(wanted - self.free, -1) if isinstance(wanted, int) and wanted > self.free else -1


class FastDeployAdapter:
    """Hooks `ResourceManagerV1`; one a process: each data-parallel rank has its own."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.hooks = (
            Hook(MODULE, CLASS, "add_request", self.before_add_request),
            Hook(MODULE, CLASS, "schedule", self.before_schedule, self.after_schedule),
            Hook(MODULE, CLASS, LAST, self.before_return),
            Hook(MODULE, CLASS, "update_metrics", self.before_return, unless=LAST),
            Hook(MODULE, CLASS, "_free_blocks", self.before_free),
            Hook(MODULE, CLASS, "finish_requests", self.before_finish, self.after_finish),
            Hook(MODULE, CLASS, "recycle_abort_task", self.before_recycle, self.after_finish),
            *Roles(self.before_add_request, lambda: self.writer, MODULE, CLASS).hooks,
        )
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.manager: Any = None
        self.active = self.scheduling = False
        self.token = (os.getpid() << 40 ^ time.time_ns()) & (1 << 62) - 1
        self.call = -1
        self.seen: Seen | None = None
        self.freed: dict[str, tuple[Any, int]] = {}
        self.skipped: set[str] = set()

    def describe(self) -> dict[str, Any]:
        row = config.describe(self.manager.config, self.manager)
        return dict(row, part="engine", token=self.token, ts=time.time_ns())

    def snapshot(self) -> Iterable[tuple[int, Row]]:
        for request in list(self.manager.running):
            if request.idx is not None:
                yield request.idx, config.running_row(request)

    def _arrived(self, request: Any, ts: int) -> None:
        limit = config.max_tokens(request)
        self.writer.request(request.request_id, ts, request.prompt_token_ids_len or 0, limit)

    def before_add_request(self, manager: Any, args: Any, kwargs: Any) -> None:
        request = args[0] if args else kwargs["request"]
        if request.request_id not in self.writer.numbers:
            self._arrived(request, time.time_ns())
            hashes = config.prompt_hashes(manager.config, request)
            if hashes:
                self.writer.hashes(request.request_id, manager.config.cache_config.block_size, hashes)

    def before_schedule(self, manager: Any, args: Any, kwargs: Any) -> tuple[int, int] | None:
        if self.manager is None:
            self.manager, self.active = manager, True
            for request in list(manager.requests.values()):
                if request.request_id not in self.writer.numbers:
                    self._arrived(request, -1)
        elif manager is not self.manager:
            return None
        self.writer.boundary()
        self.seen, self.scheduling = None, True
        self.freed.clear()
        return time.time_ns(), time.perf_counter_ns()

    def before_return(self, manager: Any, args: Any, kwargs: Any) -> None:
        """The last calls that `schedule()` makes: all that it decided is in its frame, and its lock is held."""
        if self.scheduling and self.seen is None and manager is self.manager:
            caller = sys._getframe(2)  # this method, its wrapper, then whoever called that
            if caller.f_code.co_name == "schedule":
                self.seen = Seen(manager, dict(caller.f_locals))

    def before_free(self, manager: Any, args: Any, kwargs: Any) -> None:
        if self.scheduling:
            request = args[0] if args else kwargs["request"]
            self.freed[request.request_id] = request, len(request.block_tables)

    def after_schedule(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is None:
            return
        duration = (time.perf_counter_ns() - token[1]) // 1000
        self.scheduling = False
        seen, self.seen = self.seen, None
        if seen is None:
            raise RuntimeError("schedule() returned without update_metrics(): not a FastDeploy that is known")
        tasks, errors = result if isinstance(result, tuple) else (result, ())
        if not (len(tasks) or len(errors) or seen.running or seen.waiting or seen.skipped):
            return
        self.call += 1
        counted = self._tasks(manager, tasks)
        for request_id, message in errors:
            self.writer.event("error", request_id, str(message)[:200])
            self.writer.finish(request_id, "error", 0)
        self._skips(seen.skipped)
        flags = seen.flags if len(tasks) else seen.flags | wire.EMPTY
        figures = self._figures(manager, seen, *counted)
        self.writer.schedule(self.call, token[0], duration, seen.reason, figures, seen.reservation, flags)

    def _tasks(self, manager: Any, tasks: Any) -> tuple[int, int, int, int]:
        """Stamp the tasks and tell the preemptions and aborts among them.

        Tokens of the prefill chunks, how many of these end a prefill, decodes that left, and how many were preempted.
        """
        stamp = (self.token, self.call)
        prefill = complete = aborted = preempted = 0
        for task in tasks:
            setattr(task, STAMP, stamp)
            kind = task.task_type.name
            if kind == "PREFILL":
                prefill += task.prefill_end_index - task.prefill_start_index
                complete += task.prefill_end_index >= task.need_prefill_tokens
                self.skipped.discard(task.request_id)
            elif kind == "PREEMPTED":
                preempted += 1
                self._preempted(manager, task.request_id)
            elif kind == "ABORT":
                aborted += 1
                self.writer.event("aborted", task.request_id)
        return prefill, complete, aborted, preempted

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
        """Say once of each request that it was skipped, not at each of the calls that skip it."""
        for request_id, reason in skipped:
            if request_id not in self.skipped:
                self.skipped.add(request_id)
                self.writer.event("skipped", request_id, reason)

    def _figures(
        self, manager: Any, seen: Seen, prefill: int, complete: int, aborted: int, preempted: int
    ) -> tuple[int, int, int, int, int, int, int, int, int]:
        start, ahead, decodes = config.budget(manager.config, seen.names)
        counted = -1
        if seen.left is not None and start is not None:
            charged = start - seen.left - prefill
            counted = ahead + start - seen.left
            if decodes < 0 and seen.left > 0:
                decodes = charged + aborted
        if decodes < 0:  # the loop ended early: count those past their prefill as it found them
            now = sum(1 for r in list(manager.running) if r.num_computed_tokens >= r.need_prefill_tokens)
            decodes = now - complete + aborted + preempted
        return (
            -1 if start is None else max(start, 0),
            counted,
            seen.running,
            decodes,
            seen.waiting,
            preempted,
            seen.free,
            manager.cache_manager.num_gpu_blocks,
            seen.missing,
        )

    def before_finish(self, manager: Any, args: Any, kwargs: Any) -> list[tuple[str, str, int]]:
        ids = args[0] if args else kwargs["request_ids"]
        found = []
        for request_id in (ids,) if isinstance(ids, str) else list(ids):
            request = manager.requests.get(request_id)
            if request is not None and manager is self.manager:
                made = len(request.output_token_ids)
                limit = config.max_tokens(request)
                found.append((request_id, "length" if 0 < limit <= made else "stop", made))
        return found

    def before_recycle(self, manager: Any, args: Any, kwargs: Any) -> list[tuple[str, str, int]]:
        request_id = args[0] if args else kwargs["request_id"]
        request = manager.requests.get(request_id)
        known = request is not None and manager is self.manager
        return [(request_id, "abort", len(request.output_token_ids))] if known else []

    def after_finish(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        for request_id, reason, made in token or ():
            if request_id not in manager.requests and request_id in self.writer.numbers:
                self.writer.finish(request_id, reason, made)


def _why_skipped(request: Any) -> str:
    return "preprocessing" if getattr(request, "async_process_futures", None) else "no tokens fit"
