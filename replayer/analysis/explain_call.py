"""What the calls behind one step of a replay in recorded order decided, and why: the replay run again up to there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import overload

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import CHECK_EVERY, Explained, Explainer
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import Decision, Notification, Schedule
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.replay.deployment_replay import DeploymentReplay
from fdtrace.replayer.replay.ordered_replay import CallComparison
from fdtrace.replayer.replay.workload_replay import Cancelled, Progressed, ReplayCancelled
from fdtrace.replayer.workload.workload import Workload


class OrderedExplainer(Explainer):
    """As `Explainer`, of a replay in recorded order: the calls since the step before, each with its reasons.

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
    ) -> Explained:
        """A step by its number. ReplayCancelled when `cancelled()`."""
        if self._last is not None and self._last.step == step:
            return self._last
        if self._calls is None or self._calls.passed(step):
            self._calls = _Calls(self._recording, self._workload(), self._formula, self._policy)
        self._last = self._calls.explain(step, progressed, cancelled)
        return self._last


class _Watched:
    """The model, and what stood before its last call."""

    def __init__(self, model: Scheduler) -> None:
        self.model, self.explains, self.before = model, model.explains, (0, 0, 0)

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
            self.before = self.model.num_running, self.model.num_waiting, self.model.num_free_blocks
        return self.model.apply(event)

    def num_blocks_of(self, request_id: str) -> int:
        return self.model.num_blocks_of(request_id)

    def num_prefill_tokens_of(self, request_id: str) -> int:
        return self.model.num_prefill_tokens_of(request_id)

    def num_held_back(self, decision: Decision) -> int:
        return self.model.num_held_back(decision)


class _Calls:
    """One replay in recorded order, taken as far as it is asked for."""

    def __init__(self, recording: Recording, workload: Workload, formula: Formula, policy: Policy) -> None:
        order = recording.details.order
        if order is None:
            raise TraceError("the order of calls is not recorded")
        self._watched = _Watched(Scheduler(workload.config, formula, policy, explain=True))
        self._steps = recording.steps["step"].tolist()
        self._run = DeploymentReplay(recording, order, workload, self._watched)
        self._decided: Iterator[CallComparison] = self._run.advance()
        self._looked_at = 0
        """Steps that are explained or passed over."""

    def passed(self, step: int) -> bool:
        """Whether a step is behind."""
        return self._looked_at > 0 and step <= self._steps[self._looked_at - 1]

    def explain(self, step: int, progressed: Progressed | None, cancelled: Cancelled | None) -> Explained:
        """What the calls decided whose forwards begin with this step."""
        at = self._steps.index(step)
        found = Explained(step)
        while self._run.log.num_steps <= at:
            before, decided = self._run.log.num_steps, next(self._decided, None)
            if decided is None:
                break
            if decided.decision is not None:
                found.decisions.append(decided.decision)
                found.num_running, found.num_waiting, found.num_free_blocks = self._watched.before
                found.head = self._watched.model.head_of_queue
            if self._run.log.num_steps != before:
                self._look(before, at, progressed, cancelled)
                if self._run.log.num_steps <= at:
                    found = Explained(step)
        self._looked_at = self._run.log.num_steps
        return found

    def _look(self, done: int, at: int, progressed: Progressed | None, cancelled: Cancelled | None) -> None:
        if done % CHECK_EVERY:
            return
        if cancelled is not None and cancelled():
            raise ReplayCancelled
        if progressed is not None:
            progressed(done, at)
