"""A recording beside its replays: one history a formula, with its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as changed
from typing import Literal

from recorder.recording import Recording
from replayer.as_recorded import Rows, as_recorded, no_rows, recorded_history
from replayer.config import POLICIES, Policy
from replayer.fidelity import explained_step, fidelity_of, recorded_policy, recorded_under
from replayer.formulas.base import Formula
from replayer.history import Fidelity, History
from replayer.memory import MemoryFit, fit_memory
from replayer.outcome import implied_memory, outcome_of
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
    progressed: Progressed | None = None,
    cancelled: Cancelled | None = None,
) -> list[History]:
    """The recording itself, then one history a formula, in the given order.

    `policy` is that of the rescheduled replays, else the one that the formula brings, or that recorded.
    `rows(step)` reads the recorded requests of a step. `progressed(done, expected)` hears of steps over all
    formulas. ReplayCancelled when `cancelled()`; UsageError where a formula cannot be computed; TraceError
    where nothing was recorded.
    """
    memory = fit_memory(recording)
    histories = [recorded_history(recording, rows)]
    if how == "as recorded":
        return histories + [as_recorded(recording, formula, memory, rows) for formula in formulas]
    workload = workload_from_recording(recording)
    for i, formula in enumerate(formulas):
        heard = None if progressed is None else _share(progressed, i, len(formulas))
        histories.append(
            reschedule(
                recording,
                formula,
                policy or policy_with(formula) or recorded_policy(recording),
                workload=workload,
                memory=memory,
                progressed=heard,
                cancelled=cancelled,
            )
        )
    return histories


def policy_with(formula: Formula) -> Policy | None:
    """The policy that comes with a formula, where it is a whole version of the scheduler."""
    return None if formula.policy is None else POLICIES[formula.policy]


def _share(progressed: Progressed, i: int, count: int) -> Progressed:
    return lambda done, expected: progressed(i * expected + min(done, expected), count * expected)


def reschedule(
    recording: Recording,
    formula: Formula,
    policy: Policy,
    *,
    workload: Workload | None = None,
    memory: MemoryFit | None = None,
    progressed: Progressed | None = None,
    cancelled: Cancelled | None = None,
) -> History:
    """The recorded requests scheduled afresh under a formula and a policy.

    With those that recorded, its outcome has the fidelity.
    """
    workload = workload or workload_from_recording(recording)
    same = policy is recorded_policy(recording) and recorded_under(recording, formula)
    run = Replay(workload, formula, policy, min_steps=recording.num_steps if same else 0)
    run.run(progressed, cancelled)
    history = history_of(run, memory or fit_memory(recording))
    if not same:
        return history
    return _with_fidelity(history, _fidelity(recording, history, workload, formula, policy))


def history_of(run: Replay, memory: MemoryFit | None = None) -> History:
    """The history of a replay that has been run."""
    columns = run.tape.columns()
    limit = run.workload.config.max_num_batched_tokens
    water = implied_memory(columns, memory)
    outcome = outcome_of(
        columns,
        limit,
        num_refused_tokens=int(columns["num_refused_tokens"].sum()) if run.scheduler.explains else None,
        num_unfinished=run.num_unfinished,
        hang=run.hang,
        reserved_high_water=water,
        clock=run.workload.clock,
    )
    reader = run.tape.reader()
    name = run.scheduler.name
    return History(name, "rescheduled", limit, columns, outcome, reader, reader.request_steps)


def _fidelity(
    recording: Recording, history: History, workload: Workload, formula: Formula, policy: Policy
) -> Fidelity:
    def explain(at: int) -> str:
        return explained_step(workload, formula, policy, at)

    return fidelity_of(recording, history.columns, explain)


def _with_fidelity(history: History, fidelity: Fidelity) -> History:
    return changed(history, outcome=changed(history.outcome, fidelity=fidelity))
