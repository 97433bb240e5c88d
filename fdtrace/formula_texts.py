"""`-f FORMULA` of the command line: a built-in name, an expression, or a class in a file."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.formulas import Formula

CLASS = re.compile(r"(?P<file>.+\.py):(?P<cls>[A-Za-z_]\w*)\Z")

DEFAULT = ("original", "pr7438", "pr7499")
"""The formulas of a replay without `-f`: the bug, its first fix, and the fix of the fix."""


FormulaLike = Union[str, "Formula", type]
"""A built-in name, `name: EXPRESSION`, `FILE.py:CLASS`; a formula; a class with `budget(self, v)`."""

LONGEST_TEXT = 4096
"""Most characters of a text for `-f`."""
LONGEST_NAME = 100
"""Most characters of a formula's name."""


def formula(text: str) -> Formula:
    """The formula that a text for `-f` describes. UsageError if it describes none."""
    from fdtrace.replayer.formulas import formula_from_class, parse_formula

    if len(text) > LONGEST_TEXT:
        raise UsageError(
            f"a formula of {len(text)} characters is too long", why=f"at most {LONGEST_TEXT} are read"
        )
    match = CLASS.match(text.strip())
    parsed = (
        parse_formula(text)
        if match is None
        else formula_from_class(_guarded(_class(Path(match["file"]), match["cls"])))
    )
    if len(parsed.name) > LONGEST_NAME:
        raise UsageError(
            f"the name {parsed.name[:LONGEST_NAME]!r}… of a formula is too long",
            why=f"it has {len(parsed.name)} characters, at most {LONGEST_NAME} fit beside its figures",
        )
    return parsed


def as_formulas(values: Any) -> list[Formula]:
    """The formulas that a Python program passes.

    Args:
        values: a text as for `-f`, a formula or a class; or a sequence of these.

    Raises:
        UsageError: a value is none of these, or two formulas have the same name.
    """
    from fdtrace.replayer.formulas import Formula, formula_from_class

    chosen: list[Formula] = []
    for value in [values] if isinstance(values, (str, Formula, type)) else values:
        if isinstance(value, Formula):
            chosen.append(value)
        elif isinstance(value, str):
            chosen.append(formula(value))
        else:
            chosen.append(formula_from_class(value))
    _refuse_same_names(chosen)
    return chosen


def _refuse_same_names(formulas: Sequence[Formula]) -> None:
    names = [each.name for each in formulas]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"formula {name!r} is given twice", hint="give each a name of its own")


def formulas(texts: list[str] | None) -> list[Formula]:
    """The formulas of repeated `-f`, or the default ones. UsageError if two have the same name."""
    parsed = [formula(text) for text in texts or DEFAULT]
    _refuse_same_names(parsed)
    return parsed


def _class(path: Path, name: str) -> Any:
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="-f my_formula.py:Mine")
    spec = importlib.util.spec_from_file_location(f"_fdtrace_formula_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickling look there
    try:
        with _users_code():
            spec.loader.exec_module(module)
    except Exception as error:
        line = getattr(error, "lineno", None)
        place = f", line {line}" if line else ""
        raise UsageError(f"{path} cannot be loaded{place}", why=_reason(error)) from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise UsageError(f"{path} has no class {name}") from None


class UserCodeEnded(Exception):
    """A user's code raised an exception that would end fdtrace, such as that of `sys.exit`."""


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserCodeEnded) else f"{type(error).__name__}: {error}"


@contextmanager
def _users_code() -> Iterator[None]:
    """A context for code of a user's file. It cannot end fdtrace, and what it prints goes to stderr: stdout is data.

    stdout belongs to the whole process, so it is redirected only in the main thread. The screen computes in other
    threads; there Textual itself keeps printed text off the terminal.
    """
    try:
        if threading.current_thread() is threading.main_thread():
            with redirect_stdout(sys.stderr):
                yield
        else:
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserCodeEnded(f"it raised {type(error).__name__}({error})") from error


def _guarded(cls: Any) -> Any:
    """A class that behaves like a user's formula, with every call in the context of `_users_code`.

    An object that is no such class is returned unchanged: `formula_from_class` says what is wrong with it.
    """
    from fdtrace.replayer.formulas import RULES, Formula

    if not isinstance(cls, type) or not callable(getattr(cls, "budget", None)):
        return cls

    class Guarded:
        def __init__(self) -> None:
            with _users_code():
                instance = cls()
            self._budget = _guarded_call(instance.budget)
            rules = instance.rules if isinstance(instance, Formula) else RULES
            for rule in rules:
                if hasattr(instance, rule):
                    setattr(self, rule, _guarded_call(getattr(instance, rule)))

        def budget(self, v: Any) -> Any:
            return self._budget(v)

    Guarded.__name__, Guarded.__doc__ = cls.__name__, cls.__doc__
    return Guarded


def _guarded_call(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(*state: Any) -> Any:
        with _users_code():
            return method(*state)

    return call
