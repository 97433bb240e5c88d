"""The adapter of fdtrace's own sandbox engine (`fdtrace.sandbox`): what its scheduler decided and its model ran."""

from __future__ import annotations

import os
import socket
from array import array
from time import time_ns
from typing import TYPE_CHECKING, Any, Iterable

from . import wire
from .hooks import Hook
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer


UNKNOWN_MEMORY = wire.AllocatorFigures()


def running_row(request: Any, num_computed_tokens: int) -> KeyframeRow:
    """The row of a request. `num_computed_tokens`: its tokens computed before its next step."""
    return KeyframeRow(
        request.request_id,
        request.num_prompt_tokens,
        request.max_tokens,
        num_computed_tokens,
        len(request.block_table),
        request.num_cached_tokens,
        request.num_output_tokens,
    )


class SandboxAdapter:
    """Hooks `SandboxScheduler` and `ModelRunner`. A process has one engine, and calls it in one thread."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        scheduler, runner = "fdtrace.sandbox.sandbox_scheduler", "fdtrace.sandbox.runner"
        self.hooks = (
            Hook(scheduler, "SandboxScheduler", "add_request", self.before_add_request),
            Hook(scheduler, "SandboxScheduler", "schedule", self.before_schedule, self.after_schedule),
            Hook(scheduler, "SandboxScheduler", "finish_request", self.before_finish),
            Hook(scheduler, "SandboxScheduler", "abort_request", self.before_abort),
            Hook(runner, "ModelRunner", "execute_model", self.before_execute, self.after_execute),
        )
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.scheduler: Any = None
        self.rows: dict[str, int] = {}
        self.prefills = b""
        self.call = -1
        self.active = False

    def describe(self) -> dict[str, Any]:
        config = self.scheduler.config
        return {
            "name": "sandbox",
            "version": getattr(config, "version", None),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "role": "mixed",
            "dp_rank": 0,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_profiled_tokens": config.max_num_batched_tokens,
            "max_num_seqs": config.max_num_seqs,
            "num_speculative_tokens": config.num_speculative_tokens,
            "spec_method": config.spec_method,
            "block_size": config.block_size,
            "num_blocks": config.num_blocks,
            "max_model_len": config.max_model_len,
            "chunked_prefill": config.chunked_prefill,
            "prefix_caching": config.prefix_caching,
            "config": {"formula": config.formula, "policy": config.policy, "seed": config.seed},
            "env": {name: str(value) for name, value in config.env.items()},
        }

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        for request in self.scheduler.running:
            self.rows[request.request_id] = request.slot
            yield request.slot, running_row(request, request.num_computed_tokens)

    def before_add_request(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        request = args[0] if args else kwargs["request"]
        self.writer.request(request.request_id, time_ns(), request.num_prompt_tokens, request.max_tokens)

    def before_schedule(self, scheduler: Any, args: Any, kwargs: Any) -> tuple[int, int]:
        self.scheduler = scheduler
        if not self.active:
            self.active = True
            numbers = self.writer.numbers
            for request in scheduler.waiting:
                if request.request_id not in numbers:
                    self.writer.request(request.request_id, -1, request.num_prompt_tokens, request.max_tokens)
        self.writer.boundary()
        return time_ns(), len(scheduler.running)

    def after_schedule(
        self, scheduler: Any, args: Any, kwargs: Any, token: tuple[int, int], result: Any
    ) -> None:
        ts, running = token
        duration = (time_ns() - ts) // 1000
        writer = self.writer
        self.call = result.call
        prefills, preempted, aborted, extended = (
            result.prefills,
            result.preempted,
            result.aborted,
            result.extended,
        )
        changed = preempted or aborted or prefills
        admitted = self._membership(result) if changed else 0
        if extended:
            writer.blocks([(request.slot, len(request.block_table)) for request in extended], True)
        waiting = scheduler.waiting
        if not (changed or extended or running or result.num_waiting):
            return
        missing, decodes = result.num_missing_blocks, result.num_running_decodes
        figures = (  # a plain tuple in the order of `wire.CallFigures`, which takes 10 us longer cold
            result.token_budget,  # token_budget
            result.num_scheduled_tokens,  # num_scheduled_tokens
            result.num_running,  # num_running
            decodes,  # num_running_decodes
            running - decodes,  # num_prefilling
            result.num_waiting,  # num_waiting
            0,  # num_deferred
            -1,  # num_preallocated
            len(prefills),  # num_chunks
            admitted,  # num_admitted
            len(extended),  # num_extended
            len(preempted),  # num_preempted
            len(aborted),  # num_aborted
            result.num_free_blocks,  # num_free_blocks
            result.num_blocks,  # num_blocks
            -1 if missing is None else missing,  # num_missing_blocks
            writer.numbers.get(waiting[0].request_id, -1) if waiting else -1,  # head
            -1,  # reservation
            -1,  # cache_read_budget
            -1,  # num_cache_read_tokens
            -1,  # input_budget
            -1,  # num_input_tokens
        )
        flags = 0 if changed or extended else wire.EMPTY
        writer.schedule(result.call, ts, duration, result.not_admitted or "", figures, flags)

    def _membership(self, result: Any) -> int:
        """Write which requests left the batch and which entered it. Returns how many entered."""
        vacated = []
        for request, reason, num_blocks, num_computed in result.preempted:
            vacated.append(self.rows.pop(request.request_id))
            detail = {"num_blocks": num_blocks, "num_computed_tokens": num_computed}
            self.writer.event("preempted", request.request_id, reason, detail)
        for request in result.aborted:
            row = self.rows.pop(request.request_id, None)
            if row is not None:
                vacated.append(row)
            self.writer.finish(request.request_id, "abort", request.num_output_tokens)
        joined, held, last = [], [], []
        for request, start, end in result.prefills:
            row = request.slot
            if request.request_id in self.rows:
                held.append((row, len(request.block_table)))
            else:
                self.rows[request.request_id] = row
                joined.append((row, running_row(request, start)))
            complete = end >= request.num_prompt_tokens + request.num_output_tokens
            last.append(row | wire.LAST_CHUNK if complete else row)
        self.prefills = array("H", last).tobytes()
        if vacated or joined:
            self.writer.batch(vacated, joined)
        if held:
            self.writer.blocks(held, False)
        return len(joined)

    def before_finish(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        request = args[0] if args else kwargs["request"]
        reason = args[1] if len(args) > 1 else kwargs.get("reason", "stop")
        row = self.rows.pop(request.request_id, None)
        if not self.active:
            return
        if row is not None:
            self.writer.batch((row,), ())
        self.writer.finish(request.request_id, reason, request.num_output_tokens)

    def before_abort(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        request = args[0] if args else kwargs["request"]
        if self.active:
            self.writer.event("aborted", request.request_id)

    def before_execute(self, runner: Any, args: Any, kwargs: Any) -> int:
        return time_ns()

    def after_execute(self, runner: Any, args: Any, kwargs: Any, token: int, ran: Any) -> None:
        prefills, self.prefills = self.prefills, b""
        if not ran or self.call < 0:
            return
        self.writer.forward(
            runner.step,
            self.call,
            token,
            (time_ns() - token) // 1000,
            -1,
            runner.memory or UNKNOWN_MEMORY,  # its fields are those of `wire.AllocatorFigures`
            prefills,
            array("H", runner.stalled).tobytes() if runner.stalled else b"",
            runner.seq_lens_this_time,
            runner.accept_num,
        )
