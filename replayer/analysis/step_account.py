"""One step of a history as a calculation: what it was allowed, what was charged, what ran."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.errors import FdtraceError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.analysis.explain_step import Explained
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula, FormulaColumns
from fdtrace.replayer.formulas.variables import VARIABLES, VARYING, Variables
from fdtrace.replayer.formulas.worked_example import Arithmetic, parts, spelled_out
from fdtrace.replayer.history.history import History
from fdtrace.replayer.recorded.step_state import formula_columns


@dataclass(frozen=True)
class Account:
    """Tokens, blocks and bytes of one step, as in `recorder.schema.STEP`; None is unknown.

    `budget` is what the formula gives (`arithmetic`: how), `token_budget` what the history has. `charge` is
    what each running decode takes in the scheduling loop.
    """

    step: int
    limit: int
    formula: Formula | None
    values: Mapping[str, int | None]
    """The history's columns at this step."""
    before: Mapping[str, int | None]
    """The same of the step before; empty: there is none."""
    not_admitted: str
    draft_tokens: int
    """Drafts that a decode's forward verifies."""
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
        """Tokens that the call counted for decodes: in its loop, or reserved before it."""
        scheduled, prefill = self["num_scheduled_tokens"], self["num_prefill_tokens"]
        return None if scheduled is None or prefill is None else scheduled - prefill

    @property
    def uncounted(self) -> int | None:
        """Tokens that ran and that nobody counted; below 0: counted, and not run."""
        scheduled, ran = self["num_scheduled_tokens"], self["num_tokens"]
        return None if scheduled is None or ran is None else ran - scheduled


class Accountant:
    """Makes accounts for one recording and its replays."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.config = SchedulerConfig.from_engine(recording.engine)
        self._fixed = Variables.of(self.config)

    @cached_property
    def _recorded(self) -> FormulaColumns:
        return formula_columns(self.recording)

    def account(
        self, history: History, formula: Formula | None, step: int, explained: Explained | None = None
    ) -> Account | None:
        """The account of a step; None where the history has no such step.

        `explained` holds variables of a rescheduled step that its columns do not have.
        """
        steps = history.columns["step"]
        at = int(np.searchsorted(steps, step))
        if at >= len(steps) or steps[at] != step:
            return None
        values, before = _at(history, at), _at(history, at - 1) if at else {}
        known = self._variables(history, step, values, explained)
        return self._account(
            Account(
                step, history.limit, formula, values, before, _text(history, at), self.config.num_draft_tokens
            ),
            known,
        )

    def hung(self, history: History, formula: Formula, explained: Explained) -> Account:
        """The account of the call after which a replay hangs: it has no step."""
        steps = history.columns["step"]
        before = _at(history, len(steps) - 1) if len(steps) else {}
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
        known = self._variables(history, explained.step, values, explained)
        drafts = self.config.num_draft_tokens
        return self._account(
            Account(explained.step, history.limit, formula, values, before, reason, drafts), known
        )

    def _variables(
        self, history: History, step: int, values: Mapping[str, int | None], explained: Explained | None
    ) -> dict[str, int]:
        found = {name: int(getattr(self._fixed, name)) for name in VARIABLES if name not in VARYING}
        if history.how != "rescheduled":
            at = int(np.searchsorted(self.recording.steps["step"], step))
            if at < self.recording.num_steps:
                found.update({name: int(np.asarray(self._recorded[name])[at]) for name in VARYING})
            return found
        decodes = values.get("num_running_decodes")
        if decodes is not None:
            found["num_running_decodes"] = decodes
        if explained is not None:
            found.update(num_running=explained.num_running, num_waiting=explained.num_waiting)
        return found

    def _account(self, bare: Account, known: Mapping[str, int]) -> Account:
        formula = bare.formula
        if formula is None:
            return bare
        budget, charge = parts(formula.text)
        named = set(re.findall(r"[A-Za-z_]\w*", formula.text))
        used = [name for name in VARYING if name in named or not formula.text]
        unknown = tuple(name for name in used if name not in known)
        if unknown:
            return _with(bare, unknown=unknown)
        try:
            if formula.text:
                own = spelled_out(charge, known)
                return _with(
                    bare,
                    arithmetic=spelled_out(budget, known), charge=own.value,
                )  # fmt: skip
            return _with(bare, charge=formula.charge(Variables(**known)))
        except FdtraceError:
            return bare


def _with(account: Account, **changes: Any) -> Account:
    return Account(**{**account.__dict__, **changes})


def _at(history: History, at: int) -> dict[str, int | None]:
    return {
        name: None if (value := int(column[at])) == MISSING else value
        for name, column in history.columns.items()
        if column.dtype != object
    }


def _text(history: History, at: int) -> str:
    column = history.columns.get("not_admitted")
    return "" if column is None else str(column[at] or "")
