"""What a rescheduled replay decided in one step, and why: the replay run again up to there, with reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import Decision, Forward
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.replay.run import Cancelled, Progressed, Replay, ReplayCancelled
from fdtrace.replayer.workload.workload import Workload

MOST_REASONS = 6
"""Reasons given of one step, where they stand in a sentence."""

LOOK_EVERY = 500
"""Steps between two looks at progress and cancellation."""


@dataclass
class Explained:
    """The calls of one step; of several, all but the last ran nothing.

    `num_running` and `num_waiting` are requests when the last call began, `num_free_blocks` the free blocks
    then. `head` is the request at the head of the queue after the call, with the tokens of its prefill.
    """

    step: int
    decisions: list[Decision] = field(default_factory=list)
    forward: Forward | None = None
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    head: tuple[str, int] | None = None


class Explainer:
    """Explains steps of one replay. A later step goes on from the one before; an earlier one begins anew."""

    def __init__(self, workload: Callable[[], Workload], formula: Formula, policy: Policy) -> None:
        self._workload, self._formula, self._policy = workload, formula, policy
        self._run: _Run | None = None
        self._last: Explained | None = None

    def explain(
        self, step: int, progressed: Progressed | None = None, cancelled: Cancelled | None = None
    ) -> Explained:
        """A step by its number, which may be that of a hang. ReplayCancelled when `cancelled()`."""
        if self._last is not None and self._last.step == step:
            return self._last
        workload = self._workload()
        at = step - workload.first_step
        if self._run is None or self._run.log.num_steps > at:
            self._run = _Run(workload, self._formula, self._policy)
        found = self._run.explain(at, progressed, cancelled)
        found.step = step
        self._last = found
        return found


def reasons_of_step(workload: Workload, formula: Formula, policy: Policy, at: int) -> list[str]:
    """What a replay decides in its step number `at`, counted from 0, and why, in a few lines."""
    explained = Explainer(lambda: workload, formula, policy).explain(workload.first_step + at)
    reasons = [reason.text for decision in explained.decisions for reason in decision.reasons]
    shown = reasons[:MOST_REASONS]
    if len(reasons) > MOST_REASONS:
        shown.append(f"and {len(reasons) - MOST_REASONS} more")
    return shown or ["nothing but decodes"]


class _Run(Replay):
    def __init__(self, workload: Workload, formula: Formula, policy: Policy) -> None:
        super().__init__(workload, formula, policy, min_steps=workload.max_steps)
        assert isinstance(self.scheduler, Scheduler)
        self.model: Scheduler = self.scheduler
        self._found = Explained(0)

    def explain(self, at: int, progressed: Progressed | None, cancelled: Cancelled | None) -> Explained:
        log, scheduler, looked = self.log, self.model, -1
        self._found = Explained(at)
        while log.num_steps <= at and not self.is_done():
            scheduler.explain = log.num_steps == at
            if not self._next_call():
                break
            if log.num_steps % LOOK_EVERY == 0 and log.num_steps != looked:
                looked = log.num_steps
                if cancelled is not None and cancelled():
                    raise ReplayCancelled
                if progressed is not None:
                    progressed(looked, at)
        return self._found

    def _next_call(self) -> bool:
        scheduler, found = self.model, self._found
        if scheduler.explain:
            self.arrive()
            found.num_running, found.num_waiting = scheduler.num_running, scheduler.num_waiting
            found.num_free_blocks = scheduler.num_free_blocks
        return self.advance()

    def after_call(self, decision: Decision, forward: Forward, counted: bool) -> None:
        if self.model.explain:
            found = self._found
            found.decisions.append(decision)
            found.forward, found.head = forward, self.model.head_of_queue
