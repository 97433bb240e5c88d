"""Which expressions are allowed. Everything else is refused, and the error shows its place in the text.

Allowed are numbers, documented names, arithmetic, comparisons, `and`, `or`, `not`, `min`, `max` and conditionals. Not
allowed are attributes, other calls, subscripts, strings and powers. Length, depth and numbers have limits.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.formulas.base import MAX_MAGNITUDE
from fdtrace.replayer.formulas.variables import VARIABLES

MAX_LENGTH = 1000
"""Characters of an expression."""
MAX_NODES = 300
MAX_DEPTH = 40

BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
DIVISIONS = (ast.Div, ast.FloorDiv, ast.Mod)
COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_REFUSED: Mapping[type[ast.AST], str] = {
    ast.Pow: "powers are not offered: write a product",
    ast.LShift: "shifts are not offered: write a product",
    ast.Attribute: "attributes cannot be reached",
    ast.Subscript: "there is nothing to subscript",
    ast.Lambda: "functions cannot be made",
    ast.JoinedStr: "text has no place here",
    ast.NamedExpr: "nothing can be assigned",
    ast.Starred: "lists cannot be unpacked",
}
_OFFERED = "offered are numbers, + - * / // %, comparisons, and or not, min(), max(), `A if C else B`, and "
_NAMES = "the names that `fdtrace formulas` lists"


def parse_expression(text: str, owner: str, names: Collection[str] | None = None) -> ast.expr:
    """The checked syntax tree of an expression. UsageError if it contains something that is not allowed.

    `owner` is what error messages call it, such as `formula 'mine'`. `names` are the variables that it may use; None:
    those of a formula.
    """
    if len(text) > MAX_LENGTH:
        why = f"{len(text)} characters, at most {MAX_LENGTH} are read"
        raise UsageError(f"{owner} is too long", why=why)
    source = " ".join(text.split())
    checker = _Checker(owner, source, names)
    if not source:
        raise checker.refused(0, 1, "it is empty")
    try:
        root = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = max(0, (getattr(error, "offset", None) or 1) - 1)
        message = str(getattr(error, "msg", error))
        raise checker.refused(min(column, len(source)), 1, f"it does not parse ({message})") from None
    checker.check(root, 0)
    return root


class _Checker:
    """Walks a syntax tree and refuses what is not allowed."""

    def __init__(self, owner: str, source: str, names: Collection[str] | None) -> None:
        self.owner, self.source, self.count = owner, source, 0
        self.names = VARIABLES if names is None else names
        self.offered = _OFFERED + (_NAMES if names is None else ", ".join(names))

    def refused(self, column: int, width: int, why: str) -> UsageError:
        marker = " " * column + "^" * max(1, min(width, len(self.source) - column))
        message = f"{self.owner} cannot be used: {why}\n    {self.source}\n    {marker}"
        return UsageError(message, hint=self.offered)

    def _refuse(self, node: ast.expr, why: str) -> UsageError:
        """The error for one node. `ast` counts bytes of UTF-8; the marker counts characters."""
        encoded = self.source.encode()
        start = len(encoded[: node.col_offset].decode(errors="ignore"))
        end = len(encoded[: node.end_col_offset].decode(errors="ignore"))
        return self.refused(start, end - start, why)

    def check(self, node: ast.expr, depth: int) -> None:
        self.count += 1
        if self.count > MAX_NODES:
            raise self._refuse(node, f"it has more than {MAX_NODES} parts")
        if depth > MAX_DEPTH:
            raise self._refuse(node, f"it is nested more than {MAX_DEPTH} deep")
        for child in self._operands(node):
            self.check(child, depth + 1)

    def _operands(self, node: ast.expr) -> list[ast.expr]:  # noqa: PLR0911 - one line a kind
        if isinstance(node, (ast.Constant, ast.Name)):
            self._check_leaf(node)
            return []
        if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
            return [node.left, node.right]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd, ast.Not)):
            return [node.operand]
        if isinstance(node, ast.BoolOp):
            return node.values
        if isinstance(node, ast.Compare) and all(type(op) in COMPARE for op in node.ops):
            return [node.left, *node.comparators]
        if isinstance(node, ast.IfExp):
            return [node.test, node.body, node.orelse]
        if isinstance(node, ast.Call):
            return self._arguments(node)
        kind = type(node.op) if isinstance(node, (ast.BinOp, ast.UnaryOp)) else type(node)
        raise self._refuse(node, _REFUSED.get(kind, f"{kind.__name__} is not offered"))

    def _check_leaf(self, node: ast.Constant | ast.Name) -> None:
        if isinstance(node, ast.Name):
            if node.id not in self.names:
                close = difflib.get_close_matches(node.id, self.names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise self._refuse(node, f"there is no variable {node.id!r}{hint}")
        elif type(node.value) not in (int, float):
            raise self._refuse(node, f"a value of type {type(node.value).__name__} has no place here")
        elif not abs(node.value) <= MAX_MAGNITUDE:  # type: ignore[arg-type]
            raise self._refuse(node, "this number is too large")

    def _arguments(self, node: ast.Call) -> list[ast.expr]:
        if not (isinstance(node.func, ast.Name) and node.func.id in ("min", "max")):
            raise self._refuse(node.func, "only min() and max() can be called")
        if node.keywords or len(node.args) < 2:
            raise self._refuse(node, f"{node.func.id}() takes two values or more, by position")
        return node.args
