"""vLLM, the scheduling side: what `Scheduler` decides and learns (v1/core/sched/scheduler.py), in EngineCore.

A step is one `schedule()` that handed out tokens, its forward, and the `update_from_output()` that gets the same
`SchedulerOutput`. With asynchronous scheduling, the next `schedule()` comes before that `update_from_output()`. So the
two are matched by the `SchedulerOutput` object, which carries the number of its call. What a call changed in the batch
is kept until the call's forward is written.

A call's frame is written only when its forward is under way. At that time vLLM calls `get_grammar_bitmask`, whether or
not there is a grammar, and the engine only waits. Until then the scheduler does not change what we read: every other
hook first writes the call that waits.

The workers run what the `SchedulerOutput` says, so the forward is written here. They add time, padding and memory.
"""

from __future__ import annotations

import os
import sys
import time
from array import array
from typing import TYPE_CHECKING, Any, Iterable, NamedTuple

from . import at_work, wire
from . import vllm_config as config
from . import vllm_figures as figures
from . import vllm_reasons as reasons
from . import vllm_resting as rests
from .hooks import Hook
from .vllm_batch import BatchRows, CallInFlight, RowPacker
from .vllm_figures import EndedCall
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

MODULE, CLASS = "vllm.v1.core.sched.scheduler", "Scheduler"
MANAGER = "vllm.v1.core.kv_cache_manager"

STAMP = "_fdtrace"
"""Attribute of a `SchedulerOutput`: (the engine's token, the call's number). It is pickled with it to the workers."""

RAN = "_fdtrace_ran"
"""Attribute that a worker in the same process adds to a `SchedulerOutput`: a `MeasuredForward`."""


class MeasuredForward(NamedTuple):
    """What a worker in this process measured of a forward: when it began (UTC ns; 0: not known), how long it took, the
    tokens that were launched, and the allocator after it.
    """

    ts: int = 0
    forward_us: int = wire.UNKNOWN_US
    launched: int = -1
    memory: wire.AllocatorFigures = wire.AllocatorFigures()


UNKNOWN = MeasuredForward()


class VllmAdapter:
    """Hooks `Scheduler`. A process has one engine: each data-parallel rank has its own process."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.hooks = (
            Hook(MODULE, CLASS, "add_request", self.before_add_request),
            Hook(MODULE, CLASS, "schedule", self.before_schedule, self.after_schedule),
            Hook(MODULE, CLASS, "get_grammar_bitmask", self.before_bitmask),
            Hook(MODULE, CLASS, "update_from_output", self.before_update),
            Hook(MODULE, CLASS, "_free_request", self.before_free_request),
            Hook(MODULE, CLASS, "shutdown", self.before_shutdown),
            Hook(MANAGER, "KVCacheManager", "free", self.before_free_blocks),
            Hook(MANAGER, "KVCacheManager", "pop_blocks_for_free", self.before_free_blocks),
        )
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.scheduler: Any = None
        self.active = self.begun = False
        self.token = (os.getpid() << 40 ^ time.time_ns()) & (1 << 62) - 1
        self.call, self.number, self.began_at = -1, 0, 0
        self.ended_call: EndedCall | None = None
        self.calls: dict[int, CallInFlight] = {}
        self.current: CallInFlight | None = None
        self.batch = BatchRows()
        self.ended: list[str] = []
        self.freed: dict[str, tuple[int, int]] = {}
        self.skipped: dict[str, str] = {}
        self.rules = reasons.CallRules(False, False, 0)
        self._find()

    def _find(self) -> None:
        """Find the scheduler, and describe the engine at once: an idle engine makes no calls."""
        self.scheduler = at_work.find(_scheduler_of)
        if self.scheduler is not None:
            self.began_at = time.time_ns()
            self.writer.engine(self.describe())

    def describe(self) -> dict[str, Any]:
        row = config.describe(self.scheduler)
        return dict(row, part="engine", stalls=False, token=self.token, ts=self.began_at)

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        """The rows of the call that is written next, as they were before it. If there is none: the rows that run."""
        call = self.current
        for row, request_id in enumerate(call.rows if call is not None else self.batch.ids):
            request = self.scheduler.requests.get(request_id)
            if request is None or request_id not in self.writer.numbers:
                continue
            computed = request.num_tokens
            if call is not None and request_id in call.starts:
                computed = call.starts[request_id]
            elif request_id in self.batch.prefilling:
                computed = request.num_computed_tokens
            yield row, self.batch.row(request, computed)

    # Requests arrive and end.

    def before_add_request(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        request = args[0] if args else kwargs["request"]
        self._write_call()
        if request.request_id not in self.writer.numbers:
            self._arrived(scheduler, request, time.time_ns())

    def _arrived(self, scheduler: Any, request: Any, ts: int) -> None:
        writer = self.writer
        writer.request(
            request.request_id, ts, request.num_prompt_tokens, config.max_tokens(request),
            config.sent_at(request, ts), config.priority(request),
        )  # fmt: skip
        size = getattr(scheduler, "hash_block_size", None) or scheduler.block_size
        hashes = config.prompt_hashes(request, size)
        if hashes:
            writer.hashes(request.request_id, size, hashes)

    def before_free_request(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        request = args[0] if args else kwargs["request"]
        request_id = request.request_id
        if scheduler is not self.scheduler or request_id not in self.writer.numbers:
            return
        self._write_call()
        reason = config.finish_reason(request)
        if reason == "abort":
            self.writer.event("aborted", request_id)
        self.writer.finish(request_id, reason, request.num_output_tokens)
        self.ended.append(request_id)
        self._drop(request_id)

    def _drop(self, request_id: str) -> None:
        """The request's forwards that are under way sample tokens that will be dropped."""
        for call in self.calls.values():
            call.dropped.add(request_id)

    def before_free_blocks(self, manager: Any, args: Any, kwargs: Any) -> None:
        """A preemption first frees the blocks, then forgets how many tokens they held."""
        request = args[0] if args else kwargs["request"]
        request_id = request.request_id
        self._write_call()
        self.freed[request_id] = self.batch.held.get(request_id, 0), request.num_computed_tokens

    # A call of schedule().

    def before_schedule(self, scheduler: Any, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
        if not self.active:
            self._begin_with(scheduler)
        elif scheduler is not self.scheduler:
            return None
        self._write_call()
        for request_id in self.ended:
            self.batch.forget(request_id)
        self.ended.clear()
        prefilling = len(self.batch.prefilling)
        throttled = reasons.throttles(scheduler, args, kwargs)
        return (
            time.time_ns(),
            time.perf_counter_ns(),
            len(scheduler.running) - prefilling,
            prefilling,
            throttled,
        )

    def _begin_with(self, scheduler: Any) -> None:
        """Take over the requests that are there already: a recording may begin at any moment."""
        self.scheduler, self.active, self.began_at = scheduler, True, time.time_ns()
        self.rules = reasons.rules_of(scheduler)
        self.packer = RowPacker(scheduler.scheduler_config.max_num_batched_tokens)
        for request in list(scheduler.requests.values()):
            if request.request_id not in self.writer.numbers:
                self._arrived(scheduler, request, -1)
        self.batch.take_in(scheduler)

    def after_schedule(self, scheduler: Any, args: Any, kwargs: Any, token: Any, output: Any) -> None:
        if token is None:
            return
        ts, began, decodes, prefilling, throttled = token
        duration = (time.perf_counter_ns() - began) // 1000
        self.ended_call = EndedCall(output, ts, duration, decodes, prefilling, time.time_ns(), throttled)
        if output.num_scheduled_tokens:  # next it is sent to the workers
            setattr(output, STAMP, (self.token, self.call + 1))

    def before_bitmask(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        if scheduler is self.scheduler:
            self._write_call()

    def _write_call(self) -> None:
        """Write the last call, unless it is written already."""
        ended, self.ended_call = self.ended_call, None
        if ended is None:
            return
        scheduler, output = self.scheduler, ended.output
        preempted = self._preempted(scheduler, output)
        waiting = figures.queues(scheduler)
        rest = len(output.num_scheduled_tokens) < len(scheduler.running)
        if waiting or self.skipped or rest:
            self._passed_over(scheduler, waiting, ended if rest else None)
        if not output.num_scheduled_tokens:
            if preempted or waiting or scheduler.running:
                self._write_idle_call(ended, waiting, preempted)
            return
        self.call += 1
        call = self.calls[self.call] = CallInFlight(output, ended.ended_at)
        self.batch.apply(scheduler, output, call)
        call.schedule = self._frame(ended, call, waiting, preempted, 0)
        if self.begun:
            self.writer.schedule(*call.schedule)

    def _frame(
        self, ended: EndedCall, call: CallInFlight | None, waiting: list[Any], preempted: int, flags: int
    ) -> tuple[int, int, int, str, tuple[int, ...], int]:
        numbers = self.writer.numbers
        reason, call_figures = figures.of_call(
            self.scheduler, ended, call, waiting, preempted, numbers, self.rules
        )
        return self.call, ended.ts, ended.duration_us, reason, call_figures, flags

    def _write_idle_call(self, ended: EndedCall, waiting: list[Any], preempted: int) -> None:
        """Write a call that found work but handed out nothing. An engine that hangs makes only such calls."""
        if not self.calls:  # all running requests are known, so a recording, or a segment, can begin here
            self.writer.boundary()
            self.begun = True
        if self.begun:
            self.call += 1
            self.writer.schedule(*self._frame(ended, None, waiting, preempted, wire.EMPTY))

    def _preempted(self, scheduler: Any, output: Any) -> int:
        """Write the preemptions since the last call and free their rows. Returns how many there were."""
        count = 0
        for request_id, (blocks, computed) in self.freed.items():
            request = scheduler.requests.get(request_id)
            if request is None or request_id not in self.batch.rows:
                continue
            if request_id in output.num_scheduled_tokens or request.status.name == "PREEMPTED":
                count += 1
                detail = {"num_blocks": blocks, "num_computed_tokens": computed}
                self.writer.event("preempted", request_id, "blocks", detail)
                self.batch.leave(request_id)
                if getattr(request, "drop_stale_output", False):
                    self._drop(request_id)
        self.freed.clear()
        return count

    def _passed_over(self, scheduler: Any, waiting: list[Any], ended: EndedCall | None) -> None:
        """Write of each waiting request that is not ready what it waits for, and of each running one that got nothing
        why: once, as long as that stays the same. `ended`: the call; None: all running requests got something.
        """
        not_ready = reasons.not_ready(scheduler, waiting)
        if ended is not None:
            budgets = figures.budgets_of(scheduler, self.rules, ended.throttled)
            not_ready.update(rests.resting(scheduler, ended.output.num_scheduled_tokens, budgets))
        for request_id, reason in not_ready.items():
            if self.skipped.get(request_id) != reason and request_id in self.writer.numbers:
                self.writer.event("skipped", request_id, reason)
        self.skipped = not_ready

    # The forward has run.

    def before_update(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        self._write_call()
        output = args[0] if args else kwargs["scheduler_output"]
        stamp = getattr(output, STAMP, None)
        if stamp is None or stamp[0] != self.token or stamp[1] not in self.calls:
            return
        ran = args[1] if len(args) > 1 else kwargs["model_runner_output"]
        if len(self.calls) > 1:
            for number in [number for number in self.calls if number < stamp[1]]:
                self._write_forward(number, None)
        self._write_forward(stamp[1], ran if ran.sampled_token_ids else None)

    def _write_forward(self, number: int, output: Any) -> None:
        """Write the forward of a call. `output`: the `ModelRunnerOutput` with its tokens; None: there are none."""
        call = self.current = self.calls.pop(number)
        writer = self.writer
        writer.boundary()
        self.current = None
        if not self.begun:
            self._begin_calls(call)
        writer.tasks(number, self.token)
        if call.vacated or call.joined:  # a request that was aborted in the meantime is gone
            writer.batch(call.vacated, [held for held in call.joined if held[1].request_id in writer.numbers])
        if call.blocks:
            writer.blocks(call.blocks, True)
        ran: MeasuredForward = getattr(call.output, RAN, UNKNOWN)
        tokens, emitted = self.packer.pack(call, output)
        writer.forward(
            self.number, number, ran.ts or call.ts, ran.forward_us, ran.launched, ran.memory,
            array("H", call.prefills).tobytes() if call.prefills else b"", b"",
            tokens, emitted,
        )  # fmt: skip
        self.number += 1

    def _begin_calls(self, first: CallInFlight) -> None:
        """Write the calls that waited for the first keyframe: before it, nobody knew which requests were running."""
        self.begun = True
        for call in (first, *self.calls.values()):
            self.writer.schedule(*call.schedule)

    def give_up(self) -> None:
        """Forwards whose output will never come have failed or were cut off: write them as steps without output."""
        self._write_call()
        for number in list(self.calls):
            self._write_forward(number, None)

    def before_shutdown(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        if scheduler is not self.scheduler:
            return
        self.give_up()
        error = sys.exc_info()[1]
        if isinstance(error, Exception):
            self.writer.event("error", None, "%s in the engine's step" % type(error).__name__)


def _scheduler_of(core: Any) -> Any:
    """The scheduler of an EngineCore; None of anything else."""
    scheduler = getattr(core, "__dict__", {}).get("scheduler")
    if type(scheduler).__module__.startswith("vllm.") and hasattr(scheduler, "vllm_config"):
        return scheduler
    return None
