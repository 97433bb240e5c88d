"""A recording beside its replays: one history a formula, with its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as changed
from functools import cached_property
from typing import Literal

from recorder.recording import Recording
from replayer.as_recorded import Rows, as_recorded, no_rows, recorded_history
from replayer.clock import ClockKind
from replayer.config import POLICIES, Policy
from replayer.fidelity import explained_step, fidelity_of, recorded_policy, recorded_under
from replayer.formulas.base import Formula
from replayer.history import History
from replayer.interface import AnyScheduler
from replayer.memory import fit_memory
from replayer.outcome import NOT_ASKED, MemoryQuestion, outcome_of
from replayer.recorded_work import workload_from_recording
from replayer.reschedule import Cancelled, Progressed, Replay
from replayer.workload import Workload

HowToReplay = Literal["as recorded", "rescheduled"]


def replay(
    recording: Recording,
    formulas: Sequence[Formula],
    how: HowToReplay = "rescheduled",
    *,
    policy: Policy | None = None,
    rows: Rows = no_rows,
    clock: ClockKind = "steps",
    device_bytes: int | None = None,
    progressed: Progressed | None = None,
    cancelled: Cancelled | None = None,
) -> list[History]:
    """The recording itself, then one history a formula, in the given order.

    `policy` is that of the rescheduled replays, else the one that the formula brings, or that recorded.
    `rows(step)` reads the recorded requests of a step; `clock` says by what requests arrive;
    `device_bytes` asks when a device of that size would have run out. `progressed(done, expected)` hears of
    steps over all formulas. ReplayCancelled when `cancelled()`; UsageError where a formula cannot be
    computed, or the clock cannot be had; TraceError where nothing was recorded.
    """
    desk = Desk(recording, rows, clock, device_bytes)
    histories = [desk.recorded()]
    if how == "as recorded":
        return histories + [desk.as_recorded(formula) for formula in formulas]
    for i, formula in enumerate(formulas):
        heard = None if progressed is None else _share(progressed, i, len(formulas))
        histories.append(desk.reschedule(formula, policy, heard, cancelled))
    return histories


def policy_with(formula: Formula) -> Policy | None:
    """The policy that comes with a formula, where it is a whole version of the scheduler."""
    return None if formula.policy is None else POLICIES[formula.policy]


def _share(progressed: Progressed, i: int, count: int) -> Progressed:
    return lambda done, expected: progressed(i * expected + min(done, expected), count * expected)


class Desk:
    """A recording laid out for replays: its workload and its memory fit are made once."""

    def __init__(
        self,
        recording: Recording,
        rows: Rows = no_rows,
        clock: ClockKind = "steps",
        device_bytes: int | None = None,
    ) -> None:
        self.recording, self.rows, self.clock = recording, rows, clock
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
        return as_recorded(self.recording, formula, self.memory, self.rows)

    def reschedule(
        self,
        by: Formula | AnyScheduler,
        policy: Policy | None = None,
        progressed: Progressed | None = None,
        cancelled: Cancelled | None = None,
    ) -> History:
        """The recorded requests scheduled afresh: by the model under a formula, or by another scheduler.

        With the formula and the policy that recorded, its outcome has the fidelity.
        """
        recorded, same = recorded_policy(self.recording), False
        if isinstance(by, Formula):
            policy = policy or policy_with(by) or recorded
            same = policy is recorded and recorded_under(self.recording, by)
        run = Replay(self.workload, by, policy or recorded, min_steps=self.recording.num_steps if same else 0)
        run.run(progressed, cancelled)
        history = history_of(run, self.memory)
        if not (same and isinstance(by, Formula)):
            return history
        return self._with_fidelity(history, by, policy or recorded)

    def _with_fidelity(self, history: History, formula: Formula, policy: Policy) -> History:
        fidelity = fidelity_of(
            self.recording,
            history.columns,
            lambda at: explained_step(self.workload, formula, policy, at),
            recorded_rows=self.rows,
            replayed_rows=history.rows,
        )
        return changed(history, outcome=changed(history.outcome, fidelity=fidelity))


def reschedule(recording: Recording, by: Formula | AnyScheduler, policy: Policy | None = None) -> History:
    """The recorded requests scheduled afresh, with the fidelity where it is what recorded."""
    return Desk(recording).reschedule(by, policy)


def history_of(run: Replay, memory: MemoryQuestion = NOT_ASKED) -> History:
    """The history of a replay that has been run."""
    columns = run.tape.columns()
    limit = run.workload.config.max_num_batched_tokens
    outcome = outcome_of(
        columns,
        limit,
        num_refused_tokens=int(columns["num_refused_tokens"].sum()) if run.scheduler.explains else None,
        num_unfinished=run.num_unfinished,
        hang=run.hang,
        clock=run.workload.clock,
        memory=memory,
    )
    reader = run.tape.reader()
    name = run.scheduler.name
    return History(name, "rescheduled", limit, columns, outcome, reader, reader.request_steps)
