"""How far a rescheduled replay reproduces the recording that was made under the same formula and policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.divergence import divergence_at, equal_steps
from fdtrace.replayer.config import POLICIES, RELEASE_2_6, Policy, is_modelled, policy_of_engine
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.builtin import BUILTIN
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.history.history import Divergence, Fidelity
from fdtrace.replayer.recorded.step_state import column, formula_columns


def recorded_formula(recording: Recording) -> str | None:
    """Name of the built-in formula that the recording was made under; None: none of them, or it is not known.

    None where the engine's scheduler is not modelled. The engine's configuration may name it; else it is the
    first whose budget equals every recorded one.
    """
    if not is_modelled(recording.engine):
        return None
    named = recording.engine.config.get("formula")
    if isinstance(named, str):
        return named
    budget = column(recording, "token_budget")
    seen = budget != MISSING
    if not seen.any():
        return None
    variables = formula_columns(recording)
    for name, formula in BUILTIN.items():
        if (formula.budgets(variables, recording.num_steps)[seen] == budget[seen]).all():
            return name
    return None


def recorded_under(recording: Recording, formula: Formula) -> bool:
    """Whether the recording was made under this formula: by its name, or by what it computes for each step."""
    name = recorded_formula(recording)
    if name == formula.name:
        return True
    recorded = BUILTIN.get(name or "")
    if recorded is None:
        return False
    variables, length = formula_columns(recording), recording.num_steps
    return bool(
        (formula.budgets(variables, length) == recorded.budgets(variables, length)).all()
        and (formula.charges(variables, length) == recorded.charges(variables, length)).all()
    )


def recorded_policy(recording: Recording) -> Policy:
    """The policy that the recording was made under.

    Named in the configuration; else the one that reserves blocks as the recorded calls did, where the recording knows
    that; else by engine and version.
    """
    engine = recording.engine
    if engine.config.get("policy") not in POLICIES and _knows(recording, "new_token_ratio"):
        return RELEASE_2_6
    return policy_of_engine(engine)


def _knows(recording: Recording, name: str) -> bool:
    values = recording.steps.get(name)
    return values is not None and bool((values != MISSING).any())


def fidelity_of(
    recording: Recording,
    columns: Mapping[str, NDArray[Any]],
    explain: Callable[[int], list[str]] | None = None,
    *,
    recorded_rows: RowsOfStep | None = None,
    replayed_rows: RowsOfStep | None = None,
    digests: NDArray[np.int64] | None = None,
) -> Fidelity:
    """The share of recorded steps that a replay reproduces, by position.

    `explain(i)` gives the reasons of the replay's i-th step. `digests` are those of the replay's
    steps: then a step counts where also the same requests ran the same tokens and drafts.
    """
    recorded, replayed = recording.num_steps, len(columns["num_tokens"])
    common = min(recorded, replayed)
    equal = equal_steps(recording, columns, common)
    recorded_digests = None if digests is None else recording.step_digests()
    if digests is not None and recorded_digests is not None:
        theirs = recorded_digests[:common]
        equal &= (theirs == MISSING) | (theirs == digests[:common])
    num_equal = int(equal.sum())
    if num_equal == recorded == replayed:
        return Fidelity(recorded, num_equal, None)
    if equal.all():
        longer = "recording" if recorded > replayed else "replay"
        text = f"equal up to there; the {longer} goes on: {recorded} steps recorded, {replayed} replayed"
        numbers = recording.steps["step"] if recorded > replayed else columns["step"]
        return Fidelity(recorded, num_equal, int(numbers[common]), text)
    at = int(np.argmin(equal))
    found = divergence_at(
        recording,
        columns,
        at,
        recorded_rows=recorded_rows,
        replayed_rows=replayed_rows,
        reasons=explain(at) if explain is not None else (),
    )
    return Fidelity(recorded, num_equal, found.step, _explanation(found), found)


def _explanation(found: Divergence) -> str:
    differs = "; ".join(
        f"{name} {recorded} recorded, {replayed} replayed"
        for name, recorded, replayed in found.compared
        if recorded != replayed
    )
    before = ", ".join(f"{name} {value}" for name, value in found.before)
    decided = "; ".join(found.reasons)
    parts = [
        differs,
        f"the rule that differed: {found.rule}" if found.rule else "",
        f"after the step before: {before}" if before else "",
        f"the replay decided: {decided}" if decided else "",
    ]
    return ". ".join(part for part in parts if part)
