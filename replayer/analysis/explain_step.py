"""What a rescheduled replay decided in one step, and why. The replay runs again up to that step, with reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import Decision, Forward
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.replay.workload_replay import Cancelled, Progressed, Replay, ReplayCancelled
from fdtrace.replayer.workload.workload import Workload

MOST_REASONS = 6
"""At most so many reasons of a step are listed in a sentence."""

CHECK_EVERY = 500
"""Steps between two reports of progress; cancellation is checked at the same time."""


@dataclass
class StepExplanation:
    """The calls of one step. If there are several, only the last one ran tokens.

    `num_running`, `num_waiting` (requests) and `num_free_blocks` are counted when the last call began. `head` is the
    request at the head of the waiting queue after that call, with the tokens of its prefill.
    """

    step: int
    decisions: list[Decision] = field(default_factory=list)
    forward: Forward | None = None
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    head: tuple[str, int] | None = None


class Explainer:
    """Explains steps of one replay. For a later step it continues its run; for an earlier step it starts again."""

    def __init__(self, workload: Callable[[], Workload], formula: Formula, policy: Policy) -> None:
        self._workload, self._formula, self._policy = workload, formula, policy
        self._run: _Run | None = None
        self._last: StepExplanation | None = None

    def explain(
        self, step: int, progressed: Progressed | None = None, cancelled: Cancelled | None = None
    ) -> StepExplanation:
        """Explain a step by its number; a hang's step works too. ReplayCancelled once `cancelled()` is true."""
        if self._last is not None and self._last.step == step:
            return self._last
        workload = self._workload()
        at = step - workload.first_step
        if self._run is None or self._run.replay.log.num_steps > at:
            self._run = _Run(workload, self._formula, self._policy)
        explained = self._run.explain(at, progressed, cancelled)
        explained.step = step
        self._last = explained
        return explained


def reasons_of_step(workload: Workload, formula: Formula, policy: Policy, at: int) -> list[str]:
    """What a replay decides in its `at`-th step (counted from 0), and why, in a few lines."""
    explained = Explainer(lambda: workload, formula, policy).explain(workload.first_step + at)
    reasons = [reason.text for decision in explained.decisions for reason in decision.reasons]
    shown = reasons[:MOST_REASONS]
    if len(reasons) > MOST_REASONS:
        shown.append(f"and {len(reasons) - MOST_REASONS} more")
    return shown or ["nothing but decodes"]


class _Run:
    def __init__(self, workload: Workload, formula: Formula, policy: Policy) -> None:
        self.replay = Replay(workload, formula, policy, min_steps=workload.max_steps)
        self.replay.watcher = self._note
        assert isinstance(self.replay.scheduler, Scheduler)
        self.model: Scheduler = self.replay.scheduler
        self._explained = StepExplanation(0)

    def explain(self, at: int, progressed: Progressed | None, cancelled: Cancelled | None) -> StepExplanation:
        log, scheduler, last_check = self.replay.log, self.model, -1
        self._explained = StepExplanation(at)
        while log.num_steps <= at and not self.replay.is_done():
            scheduler.explain = log.num_steps == at
            if not self._next_call():
                break
            if log.num_steps % CHECK_EVERY == 0 and log.num_steps != last_check:
                last_check = log.num_steps
                if cancelled is not None and cancelled():
                    raise ReplayCancelled
                if progressed is not None:
                    progressed(last_check, at)
        return self._explained

    def _next_call(self) -> bool:
        scheduler, explained = self.model, self._explained
        if scheduler.explain:
            self.replay.arrive()
            explained.num_running, explained.num_waiting = scheduler.num_running, scheduler.num_waiting
            explained.num_free_blocks = scheduler.num_free_blocks
        return self.replay.advance()

    def _note(self, decision: Decision, forward: Forward) -> None:
        if self.model.explain:
            explained = self._explained
            explained.decisions.append(decision)
            explained.forward, explained.head = forward, self.model.head_of_queue
