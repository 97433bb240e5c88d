"""The engine's loop: arrivals, scheduling, forward, update; one step after the other in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

from fdtrace.replayer.model.events import Forward
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.engine_counts import Counts, StepCounter
from fdtrace.sandbox.runner import ModelRunner, RanRow
from fdtrace.sandbox.sandbox_request import Scheduled
from fdtrace.sandbox.sandbox_scheduler import SandboxScheduler
from fdtrace.sandbox.seeded_load import Load

NAP_S = 0.02
"""Longest sleep without a look at `stop`."""


class SandboxEngine:
    """A scheduler, a worker and a load."""

    def __init__(
        self, config: EngineConfig, load: Load, paddle: Any, *, step_s: float = 0.0, log: TextIO | None = None
    ) -> None:
        self.config = config
        self.load = load
        self.scheduler = SandboxScheduler(config)
        self.runner = ModelRunner(config, paddle)
        self._ledger = StepCounter(config.max_num_batched_tokens, log)
        self.counts = self._ledger.counts
        self._step_s = step_s
        self._tick = 0
        self._idle = False
        """Whether no call to come brings any request further: then only what comes from outside can."""

    def run(self, *, max_steps: int | None = None, stop: Callable[[], bool] = lambda: False) -> Counts:
        """Run whole steps until the end; the counts hold the hang that ended it, if one did."""
        while not stop() and (max_steps is None or self.counts.steps < max_steps):
            begun = time.monotonic()
            scheduled, ran = self.run_once()
            if self._idle and self._next_change() is None:
                self.counts.hang = self._hang(scheduled) if self.scheduler.has_work else None
                break
            if ran:
                _sleep_until(begun + self._step_s, stop)
        return self.counts

    def run_once(self) -> tuple[Scheduled, bool]:
        """One scheduling call and its forward; True where it ran tokens, so that it is a step.

        Where nothing can move by itself, it first goes on to the step of the next arrival or abort.
        """
        if self._idle:
            self._tick = max(self._tick, self._next_change() or 0)
        number, outside = self.counts.steps, self._arrive()
        scheduled = self.scheduler.schedule()
        self._ledger.scheduled(scheduled)
        ran = self.runner.execute_model(scheduled)
        if ran:
            self._ledger.stepped(scheduled, self.runner)
            self._tick += 1
        self._update(scheduled)
        hopeless = self.scheduler.is_hopeless(number, self._forward(), outside=outside)
        self._idle = hopeless or not (ran or self.scheduler.has_work)
        return scheduled, ran

    def _next_change(self) -> int | None:
        return self.load.next_change(len(self.scheduler.waiting))

    def _forward(self) -> Forward:
        """What the forward ran, as the model's own tells it; which decodes stalled, the scheduler knows."""
        rows = self.runner.ran
        prefills, decodes = ([row for row in rows if row.kind == kind] for kind in ("prefill", "decode"))
        return Forward(
            num_prefill_tokens=sum(row.num_tokens for row in prefills),
            num_decode_tokens=sum(row.num_tokens for row in decodes),
            num_decodes=len(decodes),
            stalled=[],
            started=[row.request.request_id for row in prefills if row.emitted],
            finished=[row.request.request_id for row in rows if not row.request.num_remaining_tokens],
        )

    def _arrive(self) -> bool:
        """Hand over what is due; whether there was anything."""
        before = self.counts.arrived
        for request in self.load.arrivals(self._tick, len(self.scheduler.waiting)):
            self.counts.arrived += 1
            self.scheduler.add_request(request)
        aborts = [request for request in self.load.aborts(self._tick) if request.num_remaining_tokens]
        for request in aborts:
            self.scheduler.abort_request(request)
        return bool(aborts) or self.counts.arrived > before

    def _update(self, scheduled: Scheduled) -> None:
        """Tokens and finishes of the forward; the worker has let go of who was preempted or aborted."""
        for ran in self.runner.ran:
            _advance(ran)
        self.scheduler.take_tokens(
            {ran.request.request_id: len(ran.emitted) for ran in self.runner.ran if ran.emitted}
        )
        for ran in self.runner.ran:
            if not ran.request.num_remaining_tokens:
                self.scheduler.finish_request(ran.request, "length")
                self.counts.finished += 1
        for request, *_ in scheduled.preempted:
            self.scheduler.reschedule_request(request)
        for request in scheduled.aborted:
            self.scheduler.recycle_request(request)
            self.counts.aborted += 1

    def _hang(self, scheduled: Scheduled) -> dict[str, Any]:
        hang = self.scheduler.hang(self._forward())
        return {
            "step": hang.step,
            "cause": hang.cause,
            "token_budget": scheduled.token_budget,
            "num_running": scheduled.num_running,
            "num_stalled": len(self.runner.stalled),
            "num_waiting": scheduled.num_waiting,
            "num_free_blocks": scheduled.num_free_blocks,
            "not_admitted": scheduled.not_admitted,
        }


def _advance(ran: RanRow) -> None:
    """A prefill's chunk is in the cache; a token that was sampled counts as computed (`Request`)."""
    request = ran.request
    if ran.kind == "prefill":
        request.num_computed_tokens = ran.num_computed_tokens + ran.num_tokens
    request.append(ran.emitted)
    if ran.emitted:
        request.num_computed_tokens = request.num_total_tokens


def _sleep_until(moment: float, stop: Callable[[], bool]) -> None:
    while not stop() and (left := moment - time.monotonic()) > 0:
        time.sleep(min(left, NAP_S))
