"""Formulas from the command line: a built-in name, `NAME: EXPRESSION [; charge EXPRESSION]`, or a class."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.formulas.base import Formula, FormulaColumns, whole
from fdtrace.replayer.formulas.builtin import BUILTIN
from fdtrace.replayer.formulas.expression import Expression
from fdtrace.replayer.formulas.variables import Variables

_NAME = re.compile(r"[A-Za-z_][\w.-]*\Z")
_CHARGE = re.compile(r"\s*charge\b\s*:?")


class ExpressionFormula(Formula):
    """The user's own formula: an expression for the budget, and one for the charge (0)."""

    source = "given by the user"

    def __init__(self, name: str, budget: str, charge: str = "0") -> None:
        self.name = name
        owner = f"formula {name!r}"
        self._budget, self._charge = Expression(budget, owner), Expression(charge, owner)
        self.text = self.description = budget if charge == "0" else f"{budget}; charge {charge}"
        self._free = charge == "0"

    def budget(self, v: Variables) -> int:
        return whole(self._budget.scalar(v), f"the budget of formula {self.name!r}")

    def charge(self, v: Variables) -> int:
        return 0 if self._free else _charged(self._charge.scalar(v), self.name)

    def budgets(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        return _floored(self._budget.column(columns, length))

    def charges(self, columns: FormulaColumns, length: int) -> NDArray[np.int64]:
        values = _floored(self._charge.column(columns, length))
        if (values < 0).any():
            _charged(int(values.min()), self.name)
        return values


def _floored(values: NDArray[Any]) -> NDArray[np.int64]:
    whole_values: NDArray[np.int64] = np.floor(values).astype(np.int64)
    return whole_values


def _charged(value: Any, name: str) -> int:
    charge = whole(value, f"the charge of formula {name!r}")
    if charge < 0:
        raise UsageError(f"formula {name!r} charges a decode {charge} tokens", why="a charge is not negative")
    return charge


class ClassFormula(Formula):
    """A formula of the user's own class; its values are checked."""

    source = "given by the user"

    def __init__(self, name: str, instance: Any) -> None:
        self.name, self._instance = name, instance
        self.description = (type(instance).__doc__ or "").strip().split("\n")[0]

    def budget(self, v: Variables) -> int:
        return whole(self._call("budget", v), f"the budget of formula {self.name!r}")

    def charge(self, v: Variables) -> int:
        if not hasattr(self._instance, "charge"):
            return 0
        return _charged(self._call("charge", v), self.name)

    def _call(self, method: str, v: Variables) -> Any:
        try:
            return getattr(self._instance, method)(v)
        except Exception as error:
            state = ", ".join(f"{name} = {getattr(v, name)}" for name in Variables.__slots__)
            raise UsageError(
                f"formula {self.name!r} failed in its {method}()",
                why=f"{type(error).__name__}: {error}, with {state}",
            ) from error


def formula_from_class(cls: Any, name: str | None = None) -> Formula:
    """The formula of a user's class: `budget(self, v)`, and `charge(self, v)` if it has one, `v` a
    `Variables`.

    A class that inherits from `Formula` does as well. UsageError where it is none of these.
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
    """The formula that `text` names or spells out; UsageError shows what is wrong with it, and where."""
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
    budget, semicolon, charge = rest.partition(";")
    if not semicolon:
        return ExpressionFormula(name, budget.strip())
    match = _CHARGE.match(charge)
    if match is None:
        raise UsageError(
            f"formula {name!r} cannot be used: after `;` comes `charge EXPRESSION`, not {charge.strip()!r}",
            hint=f"`{name}: {budget.strip()}; charge num_speculative_tokens + 1`",
        )
    return ExpressionFormula(name, budget.strip(), charge[match.end() :].strip())


def _unknown(text: str) -> UsageError:
    return UsageError(
        f"there is no formula {text!r:.80}",
        hint=f"one of {', '.join(BUILTIN)}, `NAME: EXPRESSION`, or FILE.py:CLASS; see `fdtrace formulas`",
    )
