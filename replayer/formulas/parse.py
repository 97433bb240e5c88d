"""Formulas from the command line: a built-in name, `NAME: EXPRESSION [; RULE EXPRESSION]…`, or a class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.formulas.base import MAX_MAGNITUDE, Formula, FormulaColumns, whole
from fdtrace.replayer.formulas.builtin import BUILTIN
from fdtrace.replayer.formulas.call_rules import OF_A_REQUEST, RULES, split_rules
from fdtrace.replayer.formulas.expression import Expression
from fdtrace.replayer.formulas.variables import (
    REQUEST_VARIABLES,
    VARIABLES,
    RequestVariables,
    Variables,
)

_NAME = re.compile(r"[A-Za-z_][\w.-]*\Z")


class ExpressionFormula(Formula):
    """The user's own formula: an expression for the budget, and one for each rule that it has.

    Args:
        name: the formula's name.
        budget: the expression of its budget.
        rules: expression by rule (`RULES`).

    Raises:
        UsageError: an expression contains something that is not allowed.
    """

    source = "given by the user"

    def __init__(self, name: str, budget: str, rules: Mapping[str, str] | None = None) -> None:
        self.name = name
        owner = f"formula {name!r}"
        self._budget = Expression(budget, owner)
        self._rules = {
            rule: Expression(
                text,
                f"{rule} of {owner}",
                {**VARIABLES, **REQUEST_VARIABLES} if rule in OF_A_REQUEST else None,
            )
            for rule, text in (rules or {}).items()
        }
        self.text = self.description = "; ".join(
            [budget, *(f"{rule} {text}" for rule, text in (rules or {}).items())]
        )

    @property
    def rules(self) -> frozenset[str]:
        """The rules that were given."""
        return frozenset(self._rules)

    def budget(self, v: Variables) -> int:
        return whole(self._budget.scalar(v), f"the budget of formula {self.name!r}")

    def charge(self, v: Variables) -> int:
        expression = self._rules.get("charge")
        return 0 if expression is None else _charged(expression.scalar(v), self.name)

    def chunk_charge(self, v: Variables, r: RequestVariables) -> int:
        expression = self._rules.get("chunk_charge")
        return (
            r.num_chunk_tokens if expression is None else _charged(expression.scalar(r), self.name, "a chunk")
        )

    def chunk_cap(self, v: Variables, r: RequestVariables) -> int:
        return self._of("chunk_cap", r, MAX_MAGNITUDE)

    def admit(self, v: Variables, r: RequestVariables) -> int:
        return self._of("admit", r, 1)

    def input_budget(self, v: Variables) -> int:
        return self._of("input_budget", v, v.max_num_batched_tokens)

    def draft_slots(self, v: Variables) -> int:
        return self._of("draft_slots", v, v.num_draft_slots)

    def max_requests(self, v: Variables) -> int:
        return self._of("max_requests", v, v.max_num_seqs)

    def _of(self, rule: str, v: Variables | RequestVariables, otherwise: int) -> int:
        expression = self._rules.get(rule)
        return (
            otherwise
            if expression is None
            else whole(expression.scalar(v), f"{rule} of formula {self.name!r}")
        )

    def budgets(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        return _floored(self._budget.column(columns, length))

    def charges(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        expression = self._rules.get("charge")
        if expression is None:
            return np.zeros(length, dtype=np.int64)
        values = _floored(expression.column(columns, length))
        if (values < 0).any():
            _charged(int(values.min()), self.name)
        return values


def _floored(values: NDArray[Any]) -> NDArray[np.int64]:
    whole_values: NDArray[np.int64] = np.floor(values).astype(np.int64)
    return whole_values


def _charged(value: Any, name: str, whom: str = "a decode") -> int:
    charge = whole(value, f"the charge of formula {name!r}")
    if charge < 0:
        raise UsageError(f"formula {name!r} charges {whom} {charge} tokens", why="a charge is not negative")
    return charge


class ClassFormula(Formula):
    """A formula from a class of the user's own. The values that it returns are checked."""

    source = "given by the user"

    def __init__(self, name: str, instance: Any) -> None:
        self.name, self._instance = name, instance
        self.description = (type(instance).__doc__ or "").strip().split("\n")[0]
        self._rules = (
            instance.rules
            if isinstance(instance, Formula)
            else frozenset(rule for rule in RULES if hasattr(instance, rule))
        )

    @property
    def rules(self) -> frozenset[str]:
        """The rules for which the class has a method."""
        return self._rules

    def budget(self, v: Variables) -> int:
        return whole(self._call("budget", v), f"the budget of formula {self.name!r}")

    def charge(self, v: Variables) -> int:
        return _charged(self._call("charge", v), self.name) if "charge" in self._rules else 0

    def chunk_charge(self, v: Variables, r: RequestVariables) -> int:
        if "chunk_charge" not in self._rules:
            return r.num_chunk_tokens
        return _charged(self._call("chunk_charge", v, r), self.name, "a chunk")

    def chunk_cap(self, v: Variables, r: RequestVariables) -> int:
        return self._of("chunk_cap", MAX_MAGNITUDE, v, r)

    def admit(self, v: Variables, r: RequestVariables) -> int:
        return self._of("admit", 1, v, r)

    def input_budget(self, v: Variables) -> int:
        return self._of("input_budget", v.max_num_batched_tokens, v)

    def draft_slots(self, v: Variables) -> int:
        return self._of("draft_slots", v.num_draft_slots, v)

    def max_requests(self, v: Variables) -> int:
        return self._of("max_requests", v.max_num_seqs, v)

    def _of(self, rule: str, otherwise: int, *state: Variables | RequestVariables) -> int:
        if rule not in self._rules:
            return otherwise
        return whole(self._call(rule, *state), f"{rule} of formula {self.name!r}")

    def _call(self, method: str, *state: Variables | RequestVariables) -> Any:
        try:
            return getattr(self._instance, method)(*state)
        except Exception as error:
            names = [(v, name) for v in state for name in type(v).__slots__ if name != "call"]
            values = ", ".join(f"{name} = {getattr(v, name)}" for v, name in names)
            raise UsageError(
                f"formula {self.name!r} failed in its {method}()",
                why=f"{type(error).__name__}: {error}, with {values}",
            ) from error


def formula_from_class(cls: Any, name: str | None = None) -> Formula:
    """A formula from a user's class.

    Args:
        cls: a class with a method `budget(self, v)`, and one for each rule (`RULES`) that it has: `charge(self, v)`,
            `admit(self, v, r)`, …; `v` is a `Variables`, `r` a `RequestVariables`. A subclass of `Formula` is such a
            class too.
        name: the formula's name; None: the class's.

    Raises:
        UsageError: it is no such class, or an instance cannot be made without arguments.
    """
    name = name or str(getattr(cls, "__name__", repr(cls)))
    if not isinstance(cls, type) or not callable(getattr(cls, "budget", None)):
        raise UsageError(
            f"{name} is no formula",
            why="a class with a method budget(self, v) is needed",
            hint="`class Mine:` with `def budget(self, v): return v.max_num_batched_tokens - …`",
        )
    try:
        instance = cls()
    except Exception as error:
        raise UsageError(
            f"{name} cannot be made",
            why=f"{type(error).__name__}: {error}",
            hint="it is called without arguments",
        ) from error
    return ClassFormula(name, instance)


def parse_formula(text: str) -> Formula:
    """The built-in formula that `text` names, or the formula that `text` writes out as `NAME: EXPRESSION`.

    UsageError says what is wrong with the text, and where.
    """
    text = text.strip()
    if text in BUILTIN:
        return BUILTIN[text]
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not colon:
        raise _unknown(text)
    if not _NAME.match(name):
        raise UsageError(
            f"a formula cannot be named {name!r}", hint="letters, digits, `_`, `-` and `.`, a letter first"
        )
    if name in BUILTIN:
        raise UsageError(f"{name!r} is a built-in formula", hint="give yours another name")
    return _with_rules(name, rest)


def _with_rules(name: str, text: str) -> Formula:
    (_, budget), *given = split_rules(text)
    rules: dict[str, str] = {}
    for rule, expression in given:
        if not rule:
            raise UsageError(
                f"formula {name!r} cannot be used: after `;` comes a rule, as `charge EXPRESSION`, "
                f"not {expression!r:.80}",
                hint=f"`{name}: {budget}; charge num_speculative_tokens + 1`; rules are {', '.join(RULES)}",
            )
        if rule in rules:
            raise UsageError(f"formula {name!r} has {rule} twice")
        rules[rule] = expression
    return ExpressionFormula(name, budget, rules)


def _unknown(text: str) -> UsageError:
    return UsageError(
        f"there is no formula {text!r:.80}",
        hint=f"one of {', '.join(BUILTIN)}, `NAME: EXPRESSION`, or FILE.py:CLASS; see `fdtrace formulas`",
    )
