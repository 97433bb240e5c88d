"""How far a rescheduled replay, under the formula and policy of the recording, reproduces that recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.divergence import divergence_at, equal_steps
from fdtrace.replayer.config import POLICIES, RELEASE_2_6, Policy, is_modelled, policy_of_engine
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.builtin import BUILTIN, MODEL_FORMULAS
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.history.history import Divergence, Fidelity
from fdtrace.replayer.recorded.step_state import column, formula_columns


def recorded_formula(recording: Recording) -> str | None:
    """Name of the formula that the recording was made under; None: unknown.

    It is the formula that the engine's configuration names; else the first built-in formula whose budget equals
    every recorded budget, and before the others that of the recorded version (`pr7499` and `pr7623` differ only without
    a speculative method). None also if the engine's scheduler is not modelled.
    """
    if not is_modelled(recording.engine):
        return None
    configured = recording.engine.config.get("formula")
    if isinstance(configured, str):
        return configured
    budget = column(recording, "token_budget")
    recorded = budget != MISSING
    if not recorded.any():
        return None
    variables = formula_columns(recording)
    first = recorded_policy(recording)
    order = (first.formula, *MODEL_FORMULAS) if first.new_token_ratio else MODEL_FORMULAS
    for name in order:
        formula = MODEL_FORMULAS[name]
        if (formula.budgets(variables, recording.num_steps)[recorded] == budget[recorded]).all():
            return name
    return None


def recorded_under(recording: Recording, formula: Formula) -> bool:
    """Whether the recording was made under this formula: its name is the same, or its values in each step are."""
    name = recorded_formula(recording)
    if name == formula.name:
        return True
    recorded = BUILTIN.get(name or "")
    if recorded is None or not formula.rules <= {"charge"}:
        return False
    variables, length = formula_columns(recording), recording.num_steps
    return bool(
        (formula.budgets(variables, length) == recorded.budgets(variables, length)).all()
        and (formula.charges(variables, length) == recorded.charges(variables, length)).all()
    )


def has_budgets_of(recording: Recording, formula: Formula) -> bool:
    """Whether a formula gives the budgets that the recorded calls had. For engines whose own scheduler takes its
    budgets from a formula: then a replay by it is to reproduce the recording.

    If the second budget is not recorded, it is compared with the engine's own. A formula with `max_requests` has other
    budgets than any that were recorded.
    """
    if "max_requests" in formula.rules:
        return False
    variables, length = formula_columns(recording), recording.num_steps
    tokens, inputs = column(recording, "token_budget"), column(recording, "input_budget")
    is_known = tokens != MISSING
    limit = np.asarray(variables["max_num_batched_tokens"])
    slots = np.full(length, variables["num_draft_slots"])
    pairs = (
        (formula.budget, tokens),
        (formula.input_budget, np.where(inputs == MISSING, limit, inputs)),
        (formula.draft_slots, slots),
    )
    return bool(is_known.any()) and all(
        (np.maximum(formula.of_every_step(rule, variables, length), 0)[is_known] == recorded[is_known]).all()
        for rule, recorded in pairs
    )


def recorded_policy(recording: Recording) -> Policy:
    """The policy that the recording was made under.

    It is the policy that the engine's configuration names. If it names none, a recorded `new_token_ratio` shows release
    2.6; without one, engine and version decide.
    """
    engine = recording.engine
    if engine.config.get("policy") not in POLICIES and _has_values(recording, "new_token_ratio"):
        return RELEASE_2_6
    return policy_of_engine(engine)


def _has_values(recording: Recording, name: str) -> bool:
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
    num_decided: int | None = None,
) -> Fidelity:
    """Compare a replay with its recording, step by step in order.

    Args:
        recording: the recording.
        columns: the columns of the replay.
        explain: gives the reasons of the replay's i-th step.
        recorded_rows: gives the requests of a recorded step.
        replayed_rows: gives the requests of a replayed step.
        digests: of the replay's steps. With them a step counts as reproduced only if the same requests ran the same
            tokens and drafts.
        num_decided: steps that a recorded call decided. None: all. Later steps are left out.
    """
    left_out = 0 if num_decided is None else recording.num_steps - num_decided
    recorded, replayed = recording.num_steps - left_out, len(columns["num_tokens"]) - left_out
    common = min(recorded, replayed)
    equal = equal_steps(recording, columns, common)
    recorded_digests = None if digests is None else recording.step_digests()
    if digests is not None and recorded_digests is not None:
        recorded_digests = recorded_digests[:common]
        equal &= (recorded_digests == MISSING) | (recorded_digests == digests[:common])
    num_equal = int(equal.sum())
    if num_equal == recorded == replayed:
        return Fidelity(recorded, num_equal, None, num_left_out=left_out)
    if equal.all():
        longer = "recording" if recorded > replayed else "replay"
        text = f"equal up to there; the {longer} goes on: {recorded} steps recorded, {replayed} replayed"
        numbers = recording.steps["step"] if recorded > replayed else columns["step"]
        return Fidelity(recorded, num_equal, int(numbers[common]), text, num_left_out=left_out)
    at = int(np.argmin(equal))
    divergence = divergence_at(
        recording,
        columns,
        at,
        recorded_rows=recorded_rows,
        replayed_rows=replayed_rows,
        reasons=explain(at) if explain is not None else (),
    )
    text = _explanation(divergence)
    return Fidelity(recorded, num_equal, divergence.step, text, divergence, num_left_out=left_out)


def _explanation(divergence: Divergence) -> str:
    differences = "; ".join(
        f"{name} {recorded} recorded, {replayed} replayed"
        for name, recorded, replayed in divergence.compared
        if recorded != replayed
    )
    before = ", ".join(f"{name} {value}" for name, value in divergence.before)
    decided = "; ".join(divergence.reasons)
    sentences = [
        differences,
        f"the rule that differed: {divergence.rule}" if divergence.rule else "",
        f"after the step before: {before}" if before else "",
        f"the replay decided: {decided}" if decided else "",
    ]
    return ". ".join(sentence for sentence in sentences if sentence)
