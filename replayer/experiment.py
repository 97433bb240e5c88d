"""A recording and its replays: one history for each formula, with its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replaced
from functools import cached_property, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import reasons_of_step
from fdtrace.replayer.analysis.fidelity import fidelity_of, has_budgets_of, recorded_policy, recorded_under
from fdtrace.replayer.analysis.token_times import recorded_latencies, replayed_latencies
from fdtrace.replayer.config import POLICIES, Policy, is_modelled
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.as_recorded import RowsOfStep, as_recorded_history, recorded_history, rows_of
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.outcome_figures import NOT_ASKED, MemoryQuestion
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.recorded.memory_fit import fit_memory
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.replayer.recorded.step_durations import ClockKind
from fdtrace.replayer.replay.any_scheduler import AnyScheduler, OrderedScheduler, OrderTaker
from fdtrace.replayer.replay.deployment_replay import DeploymentReplay, ReportSteps
from fdtrace.replayer.replay.recorded_pipeline import RecordedPipeline, pipeline_of
from fdtrace.replayer.replay.replay_history import history_of
from fdtrace.replayer.replay.row_log import RowReader
from fdtrace.replayer.replay.workload_replay import Cancelled, Progressed, Replay, ReplayCancelled
from fdtrace.replayer.workload.closed_loop import AS_RECORDED, ArrivalMode, with_coming
from fdtrace.replayer.workload.from_recording import workload_from_recording
from fdtrace.replayer.workload.startup_checks import refuse_unservable
from fdtrace.replayer.workload.swept_recording import SweptRecording
from fdtrace.replayer.workload.under_settings import UNCHANGED, ChangedSettings, workload_under
from fdtrace.replayer.workload.workload import Workload

HowToReplay = Literal["as recorded", "rescheduled"]


def replay_recording(
    recording: Recording,
    formulas: Sequence[Formula],
    how: HowToReplay = "rescheduled",
    *,
    policy: Policy | None = None,
    rows: RowsOfStep | None = None,
    clock: ClockKind = "steps",
    device_bytes: int | None = None,
    progressed: Progressed | None = None,
    cancelled: Cancelled | None = None,
) -> list[History]:
    """Replay a recording under formulas.

    Args:
        recording: what was recorded.
        formulas: the budget formulas, each replayed by itself.
        how: "rescheduled" schedules the recorded requests again; "as recorded" keeps each step's state.
        policy: scheduler version of the rescheduled replays; by default that of the formula, or else the recorded one.
        rows: reads the requests of a recorded step, by its number; by default from the recording's trace.
        clock: whether requests arrive in a rescheduled replay by recorded steps or by recorded times.
        device_bytes: the size of a device; the outcome then says at which step it would have run out.
        progressed: called from time to time with steps done and steps expected, over all formulas.
        cancelled: asked from time to time whether to stop.

    Returns:
        The recording itself as a history, then one history for each formula, in the same order.

    Raises:
        ReplayCancelled: `cancelled()` was true.
        UsageError: a formula cannot be computed, or the recording has no times for the clock.
        TraceError: the recording holds no step.
    """
    experiment = Experiment(recording, rows, clock, device_bytes)
    histories = [experiment.recorded()]
    if how == "as recorded":
        return histories + [experiment.as_recorded(formula) for formula in formulas]
    for i, formula in enumerate(formulas):
        report = None if progressed is None else _share(progressed, i, len(formulas))
        histories.append(experiment.reschedule(formula, policy, report, cancelled))
    return histories


def policy_with(formula: Formula) -> Policy | None:
    """The policy that belongs to a formula, if the formula is a whole version of the scheduler; else None."""
    return None if formula.policy is None else POLICIES[formula.policy]


def _share(progressed: Progressed, i: int, count: int) -> Progressed:
    return lambda done, expected: progressed(i * expected + min(done, expected), count * expected)


class Experiment:
    """A recording, and what its replays share: its workload and the fit of its memory, each computed once.

    A replay is made by `as_recorded` (every step in its recorded state) or by `reschedule` (the requests again).
    """

    def __init__(
        self,
        recording: Recording,
        rows: RowsOfStep | None = None,
        clock: ClockKind = "steps",
        device_bytes: int | None = None,
        changed_settings: ChangedSettings = UNCHANGED,
        timing: RecordedTiming | None = None,
        slo: Mapping[str, float] | None = None,
        coming: ArrivalMode = AS_RECORDED,
        swept: SweptRecording | None = None,
    ) -> None:
        """`changed_settings`: those of the engine. `timing`: with it, replays by time say how long clients wait. `slo`:
        the objectives, microseconds by name. `coming`: how requests arrive by time. `swept`: keep figures alone.
        """
        self.swept = swept
        self.timing, self.slo, self.coming = timing, slo or {}, coming
        self.recording, self.clock, self.changed_settings = recording, clock, changed_settings
        has_rows = rows is not None or recording.details.step_rows is not None
        self.rows = rows or rows_of(recording)
        self._rows_to_compare = self.rows if has_rows else None
        self.memory = NOT_ASKED if swept is not None else MemoryQuestion(fit_memory(recording), device_bytes)

    @cached_property
    def workload(self) -> Workload:
        """The recorded requests."""
        workload = workload_under(self.recorded_workload(), self.recording.engine, self.changed_settings)
        if self.clock == "time":
            if self.swept is not None:
                workload = self.swept.with_coming(workload, self.coming)
            else:
                workload = with_coming(workload, self.recording, self.coming)
        return self._with_time_model(workload)

    def recorded_workload(self) -> Workload:
        """The recorded requests under the recorded settings."""
        if self.swept is not None:
            return self.swept.workload(self.clock)
        return workload_from_recording(self.recording, self.clock)

    def _with_time_model(self, workload: Workload) -> Workload:
        """By time, durations come from the batches. UsageError if settings change and durations cannot be computed."""
        if self.clock != "time" or self.timing is None:
            return workload
        if "async_scheduling" in self.changed_settings.values:
            raise UsageError(
                "how long a step takes with another async_scheduling cannot be computed",
                why="the scheduler's own time is a part of a step in one, and hidden behind the forward in the other",
                hint="arrivals=steps",
            )
        try:
            model = self.timing.model
        except UsageError:
            if self.changed_settings:
                raise
            return workload
        return replaced(workload, clock=replaced(workload.clock, model=model))

    @cached_property
    def _pipeline(self) -> RecordedPipeline | None:
        """The recorded deployment for replays under other formulas; None: it was in lockstep, or has too few steps."""
        return pipeline_of(self.recording, self.workload)

    def recorded(self) -> History:
        """The recording itself."""
        history = recorded_history(self.recording, self.rows, self.memory)
        if self.timing is None:
            return history
        try:
            latency = recorded_latencies(self.timing, self.slo)
        except UsageError:
            return history  # a replay by time says why
        return replaced(history, outcome=replaced(history.outcome, latency=latency))

    def as_recorded(self, formula: Formula) -> History:
        """Every step in its recorded state, under a formula."""
        return as_recorded_history(self.recording, formula, self.memory, self.rows)

    def reschedule(
        self,
        by: Formula | AnyScheduler,
        policy: Policy | None = None,
        progressed: Progressed | None = None,
        cancelled: Cancelled | None = None,
    ) -> History:
        """Schedule the recorded requests again.

        Args:
            by: a formula, under which the model schedules; or another scheduler.
            policy: scheduler version of the model; by default that of the formula, or else the recorded one.
            progressed, cancelled: as for `replay_recording`.

        Returns:
            The replay. Its outcome has the fidelity if it should reproduce the recording: under the recorded formula
            and policy, or by the real scheduler that recorded.

        Raises:
            UsageError: a formula cannot reschedule this recording.
        """
        if isinstance(by, Formula):
            return self._by_formula(by, policy, progressed, cancelled)
        if isinstance(by, OrderTaker) and self.clock == "steps":
            order, in_order = self.recording.details.order, by.in_order_of(self.recording.engine)
            if order is not None and in_order is not None:
                report = partial(_report, self.recording.num_steps, progressed, cancelled)
                return self._in_order(order, in_order, report)
        recorded = recorded_policy(self.recording)
        is_same_scheduler = by.engine == self.recording.engine.name and not is_modelled(self.recording.engine)
        is_same_budget = by.formula is None or has_budgets_of(self.recording, by.formula)
        is_same_scheduler = is_same_scheduler and is_same_budget and not self.changed_settings
        run = Replay(
            self.workload, by, recorded, min_steps=self.recording.num_steps if is_same_scheduler else 0
        )
        run.run(progressed, cancelled)
        history = self._history_of(run)
        compared = is_same_scheduler and self.swept is None
        return self._with_fidelity(history, digests=self._digests(run)) if compared else history

    def _by_formula(
        self, by: Formula, policy: Policy | None, progressed: Progressed | None, cancelled: Cancelled | None
    ) -> History:
        refuse_unmodelled(self.recording, by.name)
        recorded = recorded_policy(self.recording)
        chosen_policy = policy or policy_with(by) or recorded
        is_same = (
            chosen_policy == recorded and recorded_under(self.recording, by) and not self.changed_settings
        )
        if self.changed_settings:
            refuse_unservable(self.recording, self.workload, by.name, chosen_policy)
        order = self.recording.details.order if self.clock == "steps" else None
        report = partial(_report, self.recording.num_steps, progressed, cancelled)
        if order is not None and is_same:
            model = Scheduler(self.workload.config, by, chosen_policy, explain=self.swept is None)
            return self._in_order(order, model, report)
        if order is not None and (predicted := self.in_pipeline(by, chosen_policy, report)) is not None:
            return predicted
        run = Replay(self.workload, by, chosen_policy, min_steps=self.recording.num_steps if is_same else 0)
        run.run(progressed, cancelled)
        history = self._history_of(run)
        if not is_same or self.swept is not None:
            return history
        return self._with_fidelity(history, lambda at: reasons_of_step(self.workload, by, chosen_policy, at))

    def in_pipeline(
        self, by: Formula, policy: Policy | None = None, report: ReportSteps | None = None
    ) -> History | None:
        """The requests of a recorded deployment as clients sent them, through a model of its pipeline.

        `reschedule` does this under other formulas and policies than the recorded ones. Under the recorded ones, the
        result shows how large the pipeline's own error is in a prediction.

        Returns:
            The replay; None if the recording was in lockstep, or has too few steps or calls.
        """
        if self._pipeline is None:
            return None
        chosen = policy or policy_with(by) or recorded_policy(self.recording)
        predicted = self._pipeline.replay(by, chosen, report, alone=self.swept is not None)
        history = self._with_changes(history_of(predicted.run, self.memory))
        return replaced(history, outcome=replaced(history.outcome, pipeline=predicted.figures))

    def _in_order(self, order: CallOrder, by: OrderedScheduler, report: ReportSteps) -> History:
        """The recording under its own formula, or by its own scheduler, in the order in which its engine met its
        events.
        """
        run = DeploymentReplay(self.recording, order, self.workload, by)
        run.run(report)
        if self.swept is not None:
            return history_of(run)
        reader = run.log.reader()
        history = history_of(run, self.memory)
        history = self._with_fidelity(
            history, digests=reader.digests(run.numbers), num_decided=run.num_decided
        )
        fidelity = history.outcome.fidelity
        assert fidelity is not None
        with_calls = replaced(fidelity, calls=run.call_fidelity())
        return replaced(history, outcome=replaced(history.outcome, fidelity=with_calls))

    def _history_of(self, run: Replay) -> History:
        history = history_of(run, self.memory)
        latency = replayed_latencies(run, self.slo)
        if latency is not None:
            history = replaced(history, outcome=replaced(history.outcome, latency=latency))
        return self._with_changes(history)

    def _with_changes(self, history: History) -> History:
        """The history with the changed settings of the engine, and with what the result rests on."""
        workload = self.workload
        if not (self.changed_settings or workload.notes):
            return history
        settings = dict(self.changed_settings.values)
        outcome = replaced(
            history.outcome, settings=settings, num_rejected=workload.num_rejected, modelled=workload.notes
        )
        return replaced(history, outcome=outcome)

    def _digests(self, run: Replay) -> NDArray[np.int64] | None:
        reader = run.log.reader()
        if not isinstance(reader, RowReader):
            return None
        requests = self.recording.requests
        return reader.digests(
            dict(zip(requests["request_id"].tolist(), requests["request"].tolist(), strict=True))
        )

    def _with_fidelity(
        self,
        history: History,
        explain: Callable[[int], list[str]] | None = None,
        digests: NDArray[np.int64] | None = None,
        num_decided: int | None = None,
    ) -> History:
        fidelity = fidelity_of(
            self.recording,
            history.columns,
            explain,
            recorded_rows=self._rows_to_compare,
            replayed_rows=history.rows,
            digests=digests,
            num_decided=num_decided,
        )
        return replaced(history, outcome=replaced(history.outcome, fidelity=fidelity))


def _report(expected: int, progressed: Progressed | None, cancelled: Cancelled | None, steps: int) -> None:
    """Report the steps done; ReplayCancelled if asked to stop."""
    if cancelled is not None and cancelled():
        raise ReplayCancelled
    if progressed is not None:
        progressed(steps, expected)


def refuse_unmodelled(recording: Recording, name: str) -> None:
    """UsageError if a formula cannot reschedule this recording because its engine follows other rules."""
    engine = recording.engine
    if not is_modelled(engine):
        raise UsageError(
            f"{name} cannot reschedule a recording of {engine.name}",
            why="a budget formula is a part of FastDeploy's scheduler, whose rules around it are not "
            f"{engine.name}'s: half of them would be the wrong engine's",
            hint=f"--as-recorded asks what it would have allowed in each recorded step; --scheduler {engine.name} "
            "reschedules by the engine's own code",
        )


def reschedule(recording: Recording, by: Formula | AnyScheduler, policy: Policy | None = None) -> History:
    """The recorded requests scheduled again; with the fidelity, if `by` should reproduce the recording."""
    return Experiment(recording).reschedule(by, policy)
