"""What the calls of one step of a replay in recorded order decided, and why. The replay runs again up to that step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import overload

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import CHECK_EVERY, Explainer, StepExplanation
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import Decision, Notification, Schedule
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.replay.deployment_replay import DeploymentReplay
from fdtrace.replayer.replay.ordered_replay import CallComparison
from fdtrace.replayer.replay.workload_replay import Cancelled, Progressed, ReplayCancelled
from fdtrace.replayer.workload.workload import Workload


class OrderedExplainer(Explainer):
    """As `Explainer`, for a replay in recorded order: the calls since the previous step, each with its reasons.

    Several forwards may run after one call: each shows what that call decided.
    """

    def __init__(
        self, recording: Recording, workload: Callable[[], Workload], formula: Formula, policy: Policy
    ) -> None:
        super().__init__(workload, formula, policy)
        self._recording = recording
        self._calls: _Calls | None = None

    def explain(
        self, step: int, progressed: Progressed | None = None, cancelled: Cancelled | None = None
    ) -> StepExplanation:
        """Explain a step by its number. ReplayCancelled once `cancelled()` is true."""
        if self._last is not None and self._last.step == step:
            return self._last
        if self._calls is None or self._calls.passed(step):
            self._calls = _Calls(self._recording, self._workload(), self._formula, self._policy)
        self._last = self._calls.explain(step, progressed, cancelled)
        return self._last


class _WatchedScheduler:
    """The model, and its state before its last call: running requests, waiting requests, free blocks."""

    def __init__(self, model: Scheduler) -> None:
        self.model, self.explains, self.state_before = model, model.explains, (0, 0, 0)

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def num_requests(self) -> int:
        return self.model.num_requests

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Notification) -> None: ...
    def apply(self, event: Notification | Schedule) -> Decision | None:
        if isinstance(event, Schedule):
            self.state_before = self.model.num_running, self.model.num_waiting, self.model.num_free_blocks
        return self.model.apply(event)

    def num_blocks_of(self, request_id: str) -> int:
        return self.model.num_blocks_of(request_id)

    def num_prefill_tokens_of(self, request_id: str) -> int:
        return self.model.num_prefill_tokens_of(request_id)

    def num_held_back(self, decision: Decision) -> int:
        return self.model.num_held_back(decision)


class _Calls:
    """One replay in recorded order. It runs as far as the steps that are asked for."""

    def __init__(self, recording: Recording, workload: Workload, formula: Formula, policy: Policy) -> None:
        order = recording.details.order
        if order is None:
            raise TraceError("the order of calls is not recorded")
        self._watched = _WatchedScheduler(Scheduler(workload.config, formula, policy, explain=True))
        self._steps = recording.steps["step"].tolist()
        self._run = DeploymentReplay(recording, order, workload, self._watched)
        self._comparisons: Iterator[CallComparison] = self._run.advance()
        self._num_passed = 0
        """Steps that were explained or skipped."""

    def passed(self, step: int) -> bool:
        """Whether the replay has run past a step."""
        return self._num_passed > 0 and step <= self._steps[self._num_passed - 1]

    def explain(
        self, step: int, progressed: Progressed | None, cancelled: Cancelled | None
    ) -> StepExplanation:
        """What the calls decided whose forwards begin at this step."""
        index = self._steps.index(step)
        explained = StepExplanation(step)
        while self._run.log.num_steps <= index:
            steps_before, compared = self._run.log.num_steps, next(self._comparisons, None)
            if compared is None:
                break
            if compared.decision is not None:
                explained.decisions.append(compared.decision)
                explained.num_running, explained.num_waiting, explained.num_free_blocks = (
                    self._watched.state_before
                )
                explained.head = self._watched.model.head_of_queue
            if self._run.log.num_steps != steps_before:
                self._report(steps_before, index, progressed, cancelled)
                if self._run.log.num_steps <= index:
                    explained = StepExplanation(step)
        self._num_passed = self._run.log.num_steps
        return explained

    def _report(
        self, done: int, index: int, progressed: Progressed | None, cancelled: Cancelled | None
    ) -> None:
        if done % CHECK_EVERY:
            return
        if cancelled is not None and cancelled():
            raise ReplayCancelled
        if progressed is not None:
            progressed(done, index)
