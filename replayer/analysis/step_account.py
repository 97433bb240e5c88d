"""One step of a history as a calculation: its budget, what was charged, what ran."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import StepExplanation
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula, FormulaColumns
from fdtrace.replayer.formulas.variables import VARIABLES, VARYING, Variables
from fdtrace.replayer.formulas.worked_example import Arithmetic, budget_and_charge, substitute_values
from fdtrace.replayer.history.history import History
from fdtrace.replayer.recorded.step_state import formula_columns


@dataclass(frozen=True)
class StepAccount:
    """Tokens, blocks and bytes of one step, as in `recorder.schema.STEP`; None: unknown.

    `arithmetic` is how the formula computes its budget; the value `token_budget` is the budget in the history.
    `charge` is what each running decode takes from the budget in the scheduling loop.
    """

    step: int
    limit: int
    formula: Formula | None
    values: Mapping[str, int | None]
    """The history's columns at this step."""
    before: Mapping[str, int | None]
    """The same of the previous step; empty: there is none."""
    not_admitted: str
    draft_tokens: int
    """Drafts that each decode's forward verifies."""
    arithmetic: Arithmetic | None = None
    charge: int | None = None
    unknown: tuple[str, ...] = ()
    """Variables of the formula whose value at this step is not known."""

    def __getitem__(self, name: str) -> int | None:
        return self.values.get(name)

    @property
    def excess(self) -> int:
        """Tokens over the limit; 0 or less: it fits."""
        return (self["num_tokens"] or 0) - self.limit

    @property
    def charged_decodes(self) -> int | None:
        """Tokens that the call counted for decodes: charged in its loop, or reserved before the loop."""
        scheduled, prefill = self["num_scheduled_tokens"], self["num_prefill_tokens"]
        return None if scheduled is None or prefill is None else scheduled - prefill

    @property
    def uncounted(self) -> int | None:
        """Tokens that ran but that the call did not count. Below 0: tokens that it counted but that did not run."""
        scheduled, ran = self["num_scheduled_tokens"], self["num_tokens"]
        return None if scheduled is None or ran is None else ran - scheduled


class StepAccounting:
    """Makes accounts for one recording and its replays."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.config = SchedulerConfig.from_engine(recording.engine)
        self._fixed = Variables.of(self.config)

    @cached_property
    def _recorded(self) -> FormulaColumns:
        return formula_columns(self.recording)

    def account(
        self, history: History, formula: Formula | None, step: int, explained: StepExplanation | None = None
    ) -> StepAccount | None:
        """The account of a step; None if the history has no such step.

        `explained` gives those variables of a rescheduled step that its columns lack.
        """
        steps = history.columns["step"]
        at = int(np.searchsorted(steps, step))
        if at >= len(steps) or steps[at] != step:
            return None
        values, before = _values_at(history, at), _values_at(history, at - 1) if at else {}
        variables = self._variables(history, step, values, explained)
        not_admitted = _not_admitted_at(history, at)
        drafts = self.config.num_draft_tokens
        return self._computed(
            StepAccount(step, history.limit, formula, values, before, not_admitted, drafts), variables
        )

    def hung(self, history: History, formula: Formula, explained: StepExplanation) -> StepAccount:
        """The account of the call after which a replay hangs. No step belongs to that call."""
        steps = history.columns["step"]
        before = _values_at(history, len(steps) - 1) if len(steps) else {}
        decision = explained.decisions[-1] if explained.decisions else None
        values: dict[str, int | None] = {}
        reason = ""
        if decision is not None:
            names = ("token_budget", "num_running_decodes", "num_scheduled_tokens", "num_free_blocks",
                     "num_running", "num_waiting", "num_missing_blocks")  # fmt: skip
            values = {name: getattr(decision, name) for name in names}
            values["num_stalled"] = len(explained.forward.stalled) if explained.forward else 0
            values.update(num_tokens=0, num_prefill_tokens=0, num_decode_tokens=0)
            reason = decision.not_admitted or ""
        variables = self._variables(history, explained.step, values, explained)
        drafts = self.config.num_draft_tokens
        return self._computed(
            StepAccount(explained.step, history.limit, formula, values, before, reason, drafts), variables
        )

    def _variables(
        self, history: History, step: int, values: Mapping[str, int | None], explained: StepExplanation | None
    ) -> dict[str, int]:
        variables = {name: int(getattr(self._fixed, name)) for name in VARIABLES if name not in VARYING}
        if history.how != "rescheduled":
            at = int(np.searchsorted(self.recording.steps["step"], step))
            if at < self.recording.num_steps:
                variables.update({name: int(np.asarray(self._recorded[name])[at]) for name in VARYING})
            return variables
        decodes = values.get("num_running_decodes")
        if decodes is not None:
            variables["num_running_decodes"] = decodes
        if explained is not None:
            variables.update(num_running=explained.num_running, num_waiting=explained.num_waiting)
        return variables

    def _computed(self, account: StepAccount, variables: Mapping[str, int]) -> StepAccount:
        """The account with the formula's arithmetic and charge, or with the variables that are unknown."""
        formula = account.formula
        if formula is None:
            return account
        budget, charge = budget_and_charge(formula.text)
        names = set(re.findall(r"[A-Za-z_]\w*", formula.text))
        used = [name for name in VARYING if name in names or not formula.text]
        unknown = tuple(name for name in used if name not in variables)
        if unknown:
            return _with(account, unknown=unknown)
        try:
            if formula.text:
                arithmetic = substitute_values(budget, variables)
                return _with(
                    account, arithmetic=arithmetic, charge=substitute_values(charge, variables).value
                )
            return _with(account, charge=formula.charge(Variables(**variables)))
        except FdtraceError:
            return account


def _with(account: StepAccount, **changes: Any) -> StepAccount:
    return StepAccount(**{**account.__dict__, **changes})


def _values_at(history: History, at: int) -> dict[str, int | None]:
    return {
        name: None if (value := int(column[at])) == MISSING else value
        for name, column in history.columns.items()
        if column.dtype != object
    }


def _not_admitted_at(history: History, at: int) -> str:
    column = history.columns.get("not_admitted")
    return "" if column is None else str(column[at] or "")
