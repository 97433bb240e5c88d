"""`-f FORMULA` of the command line: a built-in name, an expression, or a class in a file."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.formulas import Formula

CLASS = re.compile(r"(?P<file>.+\.py):(?P<cls>[A-Za-z_]\w*)\Z")

DEFAULT = ("original", "pr7438", "pr7499")
"""What a replay compares unless told otherwise: the bug, its first fix, and the fix of the fix."""


def formula(text: str) -> Formula:
    """The formula that `-f` names; UsageError where it is none."""
    from fdtrace.replayer.formulas import formula_from_class, parse_formula

    match = CLASS.match(text.strip())
    if match is None:
        return parse_formula(text)
    return formula_from_class(_class(Path(match["file"]), match["cls"]))


def formulas(texts: list[str] | None) -> list[Formula]:
    """The formulas of repeated `-f`, or the default ones; UsageError where two have one name."""
    found = [formula(text) for text in texts or DEFAULT]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"formula {name!r} is given twice", hint="give each a name of its own")
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
        spec.loader.exec_module(module)
    except Exception as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise UsageError(f"{path} cannot be loaded{where}", why=f"{type(error).__name__}: {error}") from error
    try:
        return getattr(module, name)
    except AttributeError:
        raise UsageError(f"{path} has no class {name}") from None
