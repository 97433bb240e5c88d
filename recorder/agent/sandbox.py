"""fdtrace's own sandbox engine (`fdtrace.sandbox`): what its scheduler decided and what its model ran."""

from __future__ import annotations

import os
import socket
import time
from array import array
from typing import TYPE_CHECKING, Any, Iterable

from . import wire
from .hooks import Hook
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer


UNKNOWN_MEMORY = wire.AllocatorFigures()


def running_row(request: Any, num_computed_tokens: int) -> KeyframeRow:
    """The row of a request, with the tokens computed before its next step."""
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
    """Hooks `SandboxScheduler` and `ModelRunner`; one engine a process, its calls in one thread."""

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
        self.writer.request(request.request_id, time.time_ns(), request.num_prompt_tokens, request.max_tokens)

    def before_schedule(self, scheduler: Any, args: Any, kwargs: Any) -> tuple[int, int]:
        self.scheduler = scheduler
        if not self.active:
            self.active = True
            known = self.writer.numbers
            for request in scheduler.waiting:
                if request.request_id not in known:
                    self.writer.request(request.request_id, -1, request.num_prompt_tokens, request.max_tokens)
        self.writer.boundary()
        return time.time_ns(), len(scheduler.running)

    def after_schedule(
        self, scheduler: Any, args: Any, kwargs: Any, token: tuple[int, int], result: Any
    ) -> None:
        ts, running = token
        duration = (time.time_ns() - ts) // 1000
        self.call = result.call
        changed = result.preempted or result.aborted or result.prefills
        admitted = self._membership(result) if changed else 0
        if result.extended:
            self.writer.blocks([(r.slot, len(r.block_table)) for r in result.extended], True)
        if not (changed or result.extended or running or result.num_waiting):
            return
        missing, waiting = result.num_missing_blocks, scheduler.waiting
        figures = wire.CallFigures(
            token_budget=result.token_budget,
            num_scheduled_tokens=result.num_scheduled_tokens,
            num_running=result.num_running,
            num_running_decodes=result.num_running_decodes,
            num_prefilling=running - result.num_running_decodes,
            num_waiting=result.num_waiting,
            num_deferred=0,
            num_chunks=len(result.prefills),
            num_admitted=admitted,
            num_extended=len(result.extended),
            num_preempted=len(result.preempted),
            num_aborted=len(result.aborted),
            num_free_blocks=result.num_free_blocks,
            num_blocks=result.num_blocks,
            num_missing_blocks=-1 if missing is None else missing,
            head=self.writer.numbers.get(waiting[0].request_id, -1) if waiting else -1,
        )
        flags = 0 if changed or result.extended else wire.EMPTY
        self.writer.schedule(result.call, ts, duration, result.not_admitted or "", figures, flags)

    def _membership(self, result: Any) -> int:
        """Tell who left the batch and who entered it; how many entered."""
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
        return time.time_ns()

    def after_execute(self, runner: Any, args: Any, kwargs: Any, token: int, ran: Any) -> None:
        prefills, self.prefills = self.prefills, b""
        if not ran or self.call < 0:
            return
        self.writer.forward(
            runner.step,
            self.call,
            token,
            (time.time_ns() - token) // 1000,
            -1,
            runner.memory or UNKNOWN_MEMORY,  # its fields are those of `wire.AllocatorFigures`
            prefills,
            array("H", runner.stalled).tobytes() if runner.stalled else b"",
            memoryview(runner.seq_lens_this_time),
            memoryview(runner.accept_num),
        )
