"""How far a rescheduled replay reproduces the recording that was made under the same formula and policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recorder.recording import MISSING, Recording
from replayer.columns import column, formula_columns
from replayer.config import ORIGINAL, POLICIES, RELEASE_2_6, Policy
from replayer.events import Decision, Forward
from replayer.formulas.base import Formula
from replayer.formulas.builtin import BUILTIN
from replayer.history import Fidelity
from replayer.reschedule import Replay
from replayer.workload import Workload

COMPARED = (
    "num_tokens",
    "num_prefill_tokens",
    "num_decode_tokens",
    "num_preempted",
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "token_budget",
)
"""What must be equal for a step to count as reproduced, where the recording knows it."""


def recorded_formula(recording: Recording) -> str | None:
    """Name of the built-in formula that the recording was made under; None: no one of them, or it cannot be
    told.

    The engine's configuration may name it; else it is the first whose budget equals every recorded one.
    """
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
    """The policy that the recording was made under: named in the configuration, else told by engine and
    version.
    """
    named = recording.engine.config.get("policy")
    if isinstance(named, str) and named in POLICIES:
        return POLICIES[named]
    parts = recording.engine.version.lstrip("v").split(".")
    number = tuple(int(part) for part in parts[:2] if part.isdigit())
    return RELEASE_2_6 if recording.engine.name == "fastdeploy" and number >= (2, 6) else ORIGINAL


def fidelity_of(
    recording: Recording,
    columns: Mapping[str, NDArray[Any]],
    explain: Callable[[int], str] | None = None,
) -> Fidelity:
    """The share of recorded steps that a replay reproduces, by position.

    `explain(i)` tells of the replay's i-th step what it decided, and why.
    """
    recorded = recording.num_steps
    replayed = len(columns["num_tokens"])
    common = min(recorded, replayed)
    equal = np.ones(common, dtype=bool)
    for name in COMPARED:
        theirs = column(recording, name)[:common]
        equal &= (theirs == MISSING) | (theirs == columns[name][:common])
    num_equal = int(equal.sum())
    if num_equal == recorded == replayed:
        return Fidelity(recorded, num_equal, None)
    first = common if equal.all() else int(np.argmin(equal))
    number = _number(recording, columns, first)
    return Fidelity(recorded, num_equal, number, _explanation(recording, columns, first, explain))


def _number(recording: Recording, columns: Mapping[str, NDArray[Any]], at: int) -> int:
    steps = recording.steps["step"]
    return int(steps[at]) if at < len(steps) else int(columns["step"][at])


def _explanation(
    recording: Recording,
    columns: Mapping[str, NDArray[Any]],
    at: int,
    explain: Callable[[int], str] | None,
) -> str:
    recorded, replayed = recording.num_steps, len(columns["num_tokens"])
    if at >= min(recorded, replayed):
        longer = "recording" if recorded > replayed else "replay"
        return f"equal up to there; the {longer} goes on: {recorded} steps recorded, {replayed} replayed"
    differs = []
    for name in COMPARED:
        theirs, ours = int(column(recording, name)[at]), int(columns[name][at])
        if theirs not in (MISSING, ours):
            differs.append(f"{name} {theirs} recorded, {ours} replayed")
    parts = ["; ".join(differs), _before(recording, at)]
    if explain is not None:
        parts.append(f"the replay decided: {explain(at)}")
    return ". ".join(part for part in parts if part)


def _before(recording: Recording, at: int) -> str:
    if at == 0:
        return "it is the first step"
    state = ", ".join(
        f"{name} {value}"
        for name in ("num_running", "num_waiting", "num_free_blocks")
        if (value := int(column(recording, name)[at - 1])) != MISSING
    )
    return f"after the step before: {state}" if state else ""


class _Explained(Replay):
    """A replay that keeps the reasons of one step."""

    def __init__(self, workload: Workload, formula: Formula, policy: Policy, at: int) -> None:
        super().__init__(workload, formula, policy, explain=True, min_steps=at + 1)
        self._at = at
        self.reasons: list[str] = []

    def after_call(self, decision: Decision, forward: Forward, counted: bool) -> None:
        if self.tape.num_steps - counted == self._at:
            self.reasons.extend(reason.text for reason in decision.reasons)

    def told(self) -> str:
        while self.tape.num_steps <= self._at and not self._done():
            if not self.advance():
                break
        most = 6
        shown = "; ".join(self.reasons[:most])
        return shown + (f"; and {len(self.reasons) - most} more" if len(self.reasons) > most else "")


def explained_step(workload: Workload, formula: Formula, policy: Policy, at: int) -> str:
    """What a replay decides in its step number `at`, counted from 0, and why: the replay is run again up to
    there.
    """
    return _Explained(workload, formula, policy, at).told() or "nothing but decodes"
