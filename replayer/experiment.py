"""A recording beside its replays: one history a formula, with its outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import reasons_of_step
from fdtrace.replayer.analysis.fidelity import fidelity_of, recorded_policy, recorded_under
from fdtrace.replayer.config import POLICIES, Policy, is_modelled
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.as_recorded import RowsOfStep, as_recorded_history, recorded_history, rows_of
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.outcome import NOT_ASKED, MemoryQuestion, outcome_of
from fdtrace.replayer.recorded.memory_fit import fit_memory
from fdtrace.replayer.recorded.step_durations import ClockKind
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.deployment import DeploymentReplay
from fdtrace.replayer.replay.row_log import RowReader
from fdtrace.replayer.replay.run import Cancelled, Progressed, Replay, ReplayCancelled
from fdtrace.replayer.workload.from_recording import workload_from_recording
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
        how: "rescheduled" schedules the recorded requests afresh; "as recorded" keeps each step's state.
        policy: scheduler version of the rescheduled replays; else the one that the formula brings, or that recorded.
        rows: reads the requests of a recorded step, by its number; by default from the recording's trace.
        clock: by what requests arrive in a rescheduled replay: recorded steps, or recorded times.
        device_bytes: the size of a device; the outcome then says at which step it would have run out.
        progressed: called now and then with steps done and steps expected, over all formulas.
        cancelled: asked now and then whether to stop.

    Returns:
        The recording itself as a history, then one history a formula, in the given order.

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
        heard = None if progressed is None else _share(progressed, i, len(formulas))
        histories.append(experiment.reschedule(formula, policy, heard, cancelled))
    return histories


def policy_with(formula: Formula) -> Policy | None:
    """The policy that comes with a formula, where it is a whole version of the scheduler."""
    return None if formula.policy is None else POLICIES[formula.policy]


def _share(progressed: Progressed, i: int, count: int) -> Progressed:
    return lambda done, expected: progressed(i * expected + min(done, expected), count * expected)


class Experiment:
    """A recording, and what its replays share: its workload and the fit of its memory, each made once.

    A replay is one of `as_recorded` (every step in the state that it had) and `reschedule` (the requests afresh).
    """

    def __init__(
        self,
        recording: Recording,
        rows: RowsOfStep | None = None,
        clock: ClockKind = "steps",
        device_bytes: int | None = None,
    ) -> None:
        self.recording, self.clock = recording, clock
        known = rows is not None or recording.details.step_rows is not None
        self.rows = rows or rows_of(recording)
        self._rows_to_compare = self.rows if known else None
        self.memory = MemoryQuestion(fit_memory(recording), device_bytes)

    @cached_property
    def workload(self) -> Workload:
        """The recorded requests."""
        return workload_from_recording(self.recording, self.clock)

    def recorded(self) -> History:
        """The recording itself."""
        return recorded_history(self.recording, self.rows, self.memory)

    def as_recorded(self, formula: Formula) -> History:
        """Every step in the state that it had, under a formula."""
        return as_recorded_history(self.recording, formula, self.memory, self.rows)

    def reschedule(
        self,
        by: Formula | AnyScheduler,
        policy: Policy | None = None,
        progressed: Progressed | None = None,
        cancelled: Cancelled | None = None,
    ) -> History:
        """The recorded requests scheduled afresh.

        Args:
            by: a formula, under which the model schedules; or another scheduler.
            policy: scheduler version of the model; else the one that the formula brings, or that recorded.
            progressed, cancelled: as for `replay_recording`.

        Returns:
            The replay. Its outcome has the fidelity where it should reproduce the recording: under the formula and
            the policy that recorded, or by the real scheduler of an engine that is not modelled.

        Raises:
            UsageError: a formula cannot reschedule this recording.
        """
        if isinstance(by, Formula):
            return self._by_formula(by, policy, progressed, cancelled)
        recorded = recorded_policy(self.recording)
        same = by.engine == self.recording.engine.name and not is_modelled(self.recording.engine)
        run = Replay(self.workload, by, recorded, min_steps=self.recording.num_steps if same else 0)
        run.run(progressed, cancelled)
        history = history_of(run, self.memory)
        return self._with_fidelity(history, digests=self._digests(run)) if same else history

    def _by_formula(
        self, by: Formula, policy: Policy | None, progressed: Progressed | None, cancelled: Cancelled | None
    ) -> History:
        refuse_unmodelled(self.recording, by.name)
        recorded = recorded_policy(self.recording)
        chosen = policy or policy_with(by) or recorded
        same = chosen is recorded and recorded_under(self.recording, by)
        order = self.recording.details.order if same and self.clock == "steps" else None
        if order is not None:
            return self._in_order(order, by, chosen, progressed, cancelled)
        run = Replay(self.workload, by, chosen, min_steps=self.recording.num_steps if same else 0)
        run.run(progressed, cancelled)
        history = history_of(run, self.memory)
        if not same:
            return history
        return self._with_fidelity(history, lambda at: reasons_of_step(self.workload, by, chosen, at))

    def _in_order(
        self,
        order: CallOrder,
        by: Formula,
        policy: Policy,
        progressed: Progressed | None,
        cancelled: Cancelled | None,
    ) -> History:
        """The recording under what recorded it, in the order in which its engine met its events."""
        run = DeploymentReplay(self.recording, order, self.workload, by, policy, explain=True)

        def looked(steps: int) -> None:
            if cancelled is not None and cancelled():
                raise ReplayCancelled
            if progressed is not None:
                progressed(steps, self.recording.num_steps)

        run.run(looked)
        reader = run.log.reader()
        history = self._with_fidelity(history_of(run, self.memory), digests=reader.digests(run.numbers))
        fidelity = history.outcome.fidelity
        assert fidelity is not None
        with_calls = changed(fidelity, calls=run.call_fidelity())
        return changed(history, outcome=changed(history.outcome, fidelity=with_calls))

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
    ) -> History:
        fidelity = fidelity_of(
            self.recording,
            history.columns,
            explain,
            recorded_rows=self._rows_to_compare,
            replayed_rows=history.rows,
            digests=digests,
        )
        return changed(history, outcome=changed(history.outcome, fidelity=fidelity))


def refuse_unmodelled(recording: Recording, name: str) -> None:
    """UsageError where a formula cannot reschedule this recording: its engine follows other rules."""
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
    """The recorded requests scheduled afresh, with the fidelity where it is what recorded."""
    return Experiment(recording).reschedule(by, policy)


def history_of(run: Replay | DeploymentReplay, memory: MemoryQuestion = NOT_ASKED) -> History:
    """The history of a replay that has been run."""
    columns = memory.with_reserved(run.log.columns())
    limit = run.workload.config.max_num_batched_tokens
    outcome = outcome_of(
        columns,
        limit,
        num_refused_tokens=int(columns["num_refused_tokens"].sum()) if run.scheduler.explains else None,
        num_unfinished=run.num_unfinished,
        hang=run.hang,
        cut=run.cut,
        clock=run.workload.clock,
        order=run.order,
        memory=memory,
    )
    reader = run.log.reader()
    name = run.scheduler.name
    return History(name, "rescheduled", limit, columns, outcome, reader, reader.request_steps)
