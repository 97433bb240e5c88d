"""What the calls of one step of a pipeline's replay decided, and why. The replay runs again up to that step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import Explainer, StepExplanation
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.events import Decision, Forward
from fdtrace.replayer.replay.pipeline import PipelineReplay
from fdtrace.replayer.replay.recorded_pipeline import RecordedPipeline, pipeline_of
from fdtrace.replayer.replay.workload_replay import Cancelled, Progressed, ReplayCancelled
from fdtrace.replayer.workload.workload import Workload

MOST_STATES = 1000
"""The state before a call is kept for the last so many calls: a step belongs to one of them."""


class PipelineExplainer(Explainer):
    """As `Explainer`, for a replay as a pipeline. A step shows the call that it belongs to: the last call whose tasks
    had reached the worker, or a later call that handed out nothing. Each explained step takes a replay up to it.
    """

    def __init__(
        self, recording: Recording, workload: Callable[[], Workload], formula: Formula, policy: Policy
    ) -> None:
        super().__init__(workload, formula, policy)
        self._recording = recording
        self._pipeline: RecordedPipeline | None = None

    def explain(
        self, step: int, progressed: Progressed | None = None, cancelled: Cancelled | None = None
    ) -> StepExplanation:
        """Explain a step by its number; a hang's step works too. ReplayCancelled once `cancelled()` is true."""
        if self._last is not None and self._last.step == step:
            return self._last
        self._pipeline = self._pipeline or pipeline_of(self._recording, self._workload())
        if self._pipeline is None:
            raise TraceError("the times of this deployment are not recorded")
        index = step - self._pipeline.workload.first_step
        run = _WatchedReplay(self._pipeline, self._formula, self._policy, index)

        def report(steps: int) -> None:
            if cancelled is not None and cancelled():
                raise ReplayCancelled
            if progressed is not None:
                progressed(steps, index)

        with suppress(_Reached):
            run.run(report)
        self._last = run.explained(step)
        return self._last


class _Reached(Exception):
    """The step that was asked for has run."""


class _WatchedReplay(PipelineReplay):
    """Stops after the asked step. `asked_index` counts from 0."""

    def __init__(
        self, pipeline: RecordedPipeline, formula: Formula, policy: Policy, asked_index: int
    ) -> None:
        beginning = pipeline.beginning_of(policy)
        super().__init__(pipeline.workload, pipeline.times, beginning, formula, policy, explain=True)
        self._asked_index = asked_index
        self._last_call: Decision | None = None
        self._asked_forward: Forward | None = None
        self._states: dict[int, tuple[Decision, tuple[int, int, int], tuple[str, int] | None]] = {}

    def after_call(self, decision: Decision, before: tuple[int, int, int]) -> None:
        self._states[id(decision)] = decision, before, self.scheduler.head_of_queue
        self._last_call = decision
        if len(self._states) > MOST_STATES:
            del self._states[next(iter(self._states))]

    def after_forward(self, decision: Decision, forward: Forward) -> None:
        if self.log.num_steps == self._asked_index + 1:
            self._last_call, self._asked_forward = decision, forward
            raise _Reached

    def explained(self, step: int) -> StepExplanation:
        """The explanation of the step, as far as its call is kept."""
        if self._last_call is None or id(self._last_call) not in self._states:
            return StepExplanation(step, [], self._asked_forward)
        decision, (running, waiting, free), head = self._states[id(self._last_call)]
        return StepExplanation(step, [decision], self._asked_forward, running, waiting, free, head)
