"""`-f FORMULA` of the command line: a built-in name, an expression, or a class in a file."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.formulas import Formula

CLASS = re.compile(r"(?P<file>.+\.py):(?P<cls>[A-Za-z_]\w*)\Z")

DEFAULT = ("original", "pr7438", "pr7499")
"""What a replay compares unless told otherwise: the bug, its first fix, and the fix of the fix."""


LONGEST_TEXT = 4096
"""Characters of what `-f` takes."""
LONGEST_NAME = 100
"""Characters of a formula's name."""


def formula(text: str) -> Formula:
    """The formula that `-f` names; UsageError where it is none."""
    from fdtrace.replayer.formulas import formula_from_class, parse_formula

    if len(text) > LONGEST_TEXT:
        raise UsageError(
            f"a formula of {len(text)} characters is too long", why=f"at most {LONGEST_TEXT} are read"
        )
    match = CLASS.match(text.strip())
    found = (
        parse_formula(text)
        if match is None
        else formula_from_class(_guarded(_class(Path(match["file"]), match["cls"])))
    )
    if len(found.name) > LONGEST_NAME:
        raise UsageError(
            f"the name {found.name[:LONGEST_NAME]!r}… of a formula is too long",
            why=f"it has {len(found.name)} characters, at most {LONGEST_NAME} fit beside its figures",
        )
    return found


def as_formulas(given: Any) -> list[Formula]:
    """The formulas that a program gives: one, or a sequence, of texts as `-f` takes them, formulas, or classes.

    Raises:
        UsageError: one is none of these, or two have one name.
    """
    from fdtrace.replayer.formulas import Formula, formula_from_class

    several = [given] if isinstance(given, (str, Formula, type)) else list(given)
    found = []
    for one in several:
        if isinstance(one, Formula):
            found.append(one)
        elif isinstance(one, str):
            found.append(formula(one))
        else:
            found.append(formula_from_class(one))
    _refuse_twice(found)
    return found


def _refuse_twice(found: Sequence[Formula]) -> None:
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"formula {name!r} is given twice", hint="give each a name of its own")


def formulas(texts: list[str] | None) -> list[Formula]:
    """The formulas of repeated `-f`, or the default ones; UsageError where two have one name."""
    found = [formula(text) for text in texts or DEFAULT]
    _refuse_twice(found)
    return found


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
        where = f", line {line}" if line else ""
        raise UsageError(f"{path} cannot be loaded{where}", why=_said(error)) from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise UsageError(f"{path} has no class {name}") from None


class UserCodeEnded(Exception):
    """A user's code raised what would end fdtrace, as `sys.exit` does."""


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, UserCodeEnded) else f"{type(error).__name__}: {error}"


@contextmanager
def _users_code() -> Iterator[None]:
    """Runs code of a user's file: what it prints goes to stderr, for stdout is data, and it cannot end fdtrace.

    stdout is the whole process's, so it is turned in the main thread alone; the screen, which computes in other
    threads, keeps what they print by itself.
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
    """A class that behaves as a user's formula, each of whose calls is guarded by `_users_code`.

    What is no formula is given back as it is: `formula_from_class` says what is wrong with it.
    """
    if not isinstance(cls, type) or not callable(getattr(cls, "budget", None)):
        return cls

    class Guarded:
        def __init__(self) -> None:
            with _users_code():
                own = cls()
            self._budget = _guarded_call(own.budget)
            if hasattr(own, "charge"):
                self.charge = _guarded_call(own.charge)

        def budget(self, v: Any) -> Any:
            return self._budget(v)

    Guarded.__name__, Guarded.__doc__ = cls.__name__, cls.__doc__
    return Guarded


def _guarded_call(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(v: Any) -> Any:
        with _users_code():
            return method(v)

    return call
