"""A checked expression. It is evaluated for one call or for a column of steps, with the same values and errors."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.printable import printable
from fdtrace.replayer.formulas.base import MAX_MAGNITUDE, FormulaColumns
from fdtrace.replayer.formulas.syntax import BINARY, COMPARE, DIVISIONS, parse_expression
from fdtrace.replayer.formulas.variables import VARIABLES, RequestVariables, Variables

Scalar = Callable[[Any], Any]
"""A function of a `Variables` or of a `RequestVariables`."""
Array = NDArray[Any]


class Expression:
    """One expression over variables.

    Args:
        text: the expression.
        owner: what error messages call it, such as `formula 'mine'`.
        names: the variables that it may use; None: those of a formula.

    Raises:
        UsageError: the expression contains something that is not allowed.
    """

    def __init__(self, text: str, owner: str, names: Collection[str] | None = None) -> None:
        self.text, self.owner = text, owner
        self._names = VARIABLES if names is None else names
        self._root = parse_expression(text, owner, names)
        self._scalar = compiled(self._root)

    def __repr__(self) -> str:
        """Its owner and its text."""
        return f"<{type(self).__name__} of {printable(self.owner)}: {printable(self.text)}>"

    @property
    def used(self) -> list[str]:
        """The variables that it uses, in their documented order."""
        used_names = {node.id for node in ast.walk(self._root) if isinstance(node, ast.Name)}
        return [name for name in self._names if name in used_names]

    def scalar(self, v: Variables | RequestVariables) -> Any:
        """Its value for one call. UsageError, with the values of the variables, if it cannot be computed."""
        try:
            return self._scalar(v)
        except Uncomputable as error:
            raise self._error(error.why, {name: getattr(v, name) for name in self.used}) from None

    def column(self, columns: FormulaColumns, length: int) -> Array:
        """Its value for each of `length` steps. UsageError, with the variables of the first step that fails."""
        arrays = {name: np.asarray(column) for name, column in columns.items() if name in self._names}
        try:
            return _column(self._root, _Steps(arrays, np.arange(length)))
        except Uncomputable as error:
            at = error.at
            values = {name: int(a if a.ndim == 0 else a[at]) for name, a in arrays.items()}
            raise self._error(error.why, values, f" in entry {at} of the recorded steps") from None

    def _error(self, why: str, variables: Mapping[str, int], where: str = "") -> UsageError:
        values = ", ".join(f"{name} = {variables[name]}" for name in self.used)
        return UsageError(
            f"{self.owner} cannot be computed{where}: {self.text}",
            why=f"{why}, with {values}" if values else why,
            hint="guard it, e.g. `A / num_running if num_running else B`",
        )


class Uncomputable(Exception):
    """An expression has no value: `why`, and `at` which entry of the columns."""

    def __init__(self, why: str, at: int = 0) -> None:
        super().__init__(why)
        self.why, self.at = why, at


# One call ---------------------------------------------------------------------------------------------------


def compiled(node: ast.expr) -> Scalar:
    """A function of the variables that computes a subexpression."""
    return _COMPILERS[type(node)](node)


def _constant(node: ast.Constant) -> Scalar:
    value = node.value
    return lambda v: value


def _name(node: ast.Name) -> Scalar:
    name = node.id
    return lambda v: getattr(v, name)


def _binary(node: ast.BinOp) -> Scalar:
    left, right, compute = compiled(node.left), compiled(node.right), BINARY[type(node.op)]
    divides, divisor = isinstance(node.op, DIVISIONS), ast.unparse(node.right)

    def value(v: Variables) -> Any:
        a, b = left(v), right(v)
        if divides and b == 0:
            raise Uncomputable(f"{divisor} is 0, and it divides")
        result = compute(a, b)
        if not abs(result) <= MAX_MAGNITUDE:
            raise Uncomputable(f"{result:.3g} is too large a value")
        return result

    return value


def _unary(node: ast.UnaryOp) -> Scalar:
    operand = compiled(node.operand)
    if isinstance(node.op, ast.Not):
        return lambda v: int(not operand(v))
    return (lambda v: -operand(v)) if isinstance(node.op, ast.USub) else operand


def _boolean(node: ast.BoolOp) -> Scalar:
    operands, stop_at = [compiled(operand) for operand in node.values], isinstance(node.op, ast.Or)

    def value(v: Variables) -> Any:
        result = None
        for operand in operands:
            result = operand(v)
            if bool(result) is stop_at:
                break
        return result

    return value


def _comparison(node: ast.Compare) -> Scalar:
    first = compiled(node.left)
    rest = [(COMPARE[type(op)], compiled(p)) for op, p in zip(node.ops, node.comparators, strict=True)]

    def value(v: Variables) -> int:
        left = first(v)
        for holds, operand in rest:
            right = operand(v)
            if not holds(left, right):
                return 0
            left = right
        return 1

    return value


def _conditional(node: ast.IfExp) -> Scalar:
    test, yes, no = compiled(node.test), compiled(node.body), compiled(node.orelse)
    return lambda v: yes(v) if test(v) else no(v)


def _call(node: ast.Call) -> Scalar:
    assert isinstance(node.func, ast.Name)
    choose = min if node.func.id == "min" else max
    arguments = [compiled(argument) for argument in node.args]
    return lambda v: choose([argument(v) for argument in arguments])


_COMPILERS: Mapping[type[ast.expr], Callable[[Any], Scalar]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.BinOp: _binary,
    ast.UnaryOp: _unary,
    ast.BoolOp: _boolean,
    ast.Compare: _comparison,
    ast.IfExp: _conditional,
    ast.Call: _call,
}


# A column of steps ------------------------------------------------------------------------------------------


class _Steps:
    """Some of the steps: a subexpression is computed only for the steps that need its value."""

    def __init__(self, columns: Mapping[str, Array], at: NDArray[np.int64]) -> None:
        self.columns, self.at = columns, at

    def where(self, mask: NDArray[np.bool_]) -> _Steps:
        return self if mask.all() else _Steps(self.columns, self.at[mask])


def _column(node: ast.expr, steps: _Steps) -> Array:
    return _EVALUATORS[type(node)](node, steps)


def _constant_column(node: ast.Constant, steps: _Steps) -> Array:
    return np.full(len(steps.at), node.value)


def _name_column(node: ast.Name, steps: _Steps) -> Array:
    column = steps.columns[node.id]
    if column.ndim == 0:
        return np.full(len(steps.at), column)
    return np.asarray(column[steps.at])


def _binary_column(node: ast.BinOp, steps: _Steps) -> Array:
    left, right = _column(node.left, steps), _column(node.right, steps)
    if isinstance(node.op, DIVISIONS):
        _refuse_where(right == 0, steps, f"{ast.unparse(node.right)} is 0, and it divides")
    if isinstance(node.op, ast.Mult):  # checked as floats first: a product of integers may overflow
        _refuse_where(np.abs(left.astype(np.float64) * right) > MAX_MAGNITUDE, steps, "too large a value")
    value: Array = BINARY[type(node.op)](left, right)
    _refuse_where(np.abs(value) > MAX_MAGNITUDE, steps, "too large a value")
    return value


def _refuse_where(mask: NDArray[np.bool_], steps: _Steps, why: str) -> None:
    if mask.any():
        raise Uncomputable(why, int(steps.at[mask.argmax()]))


def _unary_column(node: ast.UnaryOp, steps: _Steps) -> Array:
    value = _column(node.operand, steps)
    if isinstance(node.op, ast.Not):
        return np.asarray(value == 0).astype(np.int64)
    if isinstance(node.op, ast.USub):
        value = 0 - value
    return value


def _boolean_column(node: ast.BoolOp, steps: _Steps) -> Array:
    value = _column(node.values[0], steps)
    if len(node.values) == 1:
        return value
    goes_on = (value == 0) if isinstance(node.op, ast.Or) else (value != 0)
    rest = _column(ast.BoolOp(node.op, node.values[1:]), steps.where(goes_on))
    return _merged(goes_on, rest, value[~goes_on])


def _comparison_column(node: ast.Compare, steps: _Steps) -> Array:
    left = _column(node.left, steps)
    right = _column(node.comparators[0], steps)
    holds = COMPARE[type(node.ops[0])](left, right)
    if len(node.ops) == 1:
        return np.asarray(holds).astype(np.int64)
    rest = ast.Compare(node.comparators[0], node.ops[1:], node.comparators[1:])
    return _merged(holds, _column(rest, steps.where(holds)), np.zeros(int((~holds).sum()), dtype=np.int64))


def _conditional_column(node: ast.IfExp, steps: _Steps) -> Array:
    test = _column(node.test, steps) != 0
    return _merged(test, _column(node.body, steps.where(test)), _column(node.orelse, steps.where(~test)))


def _call_column(node: ast.Call, steps: _Steps) -> Array:
    assert isinstance(node.func, ast.Name)
    choose = np.minimum if node.func.id == "min" else np.maximum
    value = _column(node.args[0], steps)
    for argument in node.args[1:]:
        value = choose(value, _column(argument, steps))
    return value


def _merged(test: NDArray[np.bool_], yes: Array, no: Array) -> Array:
    value = np.empty(len(test), dtype=np.result_type(yes.dtype, no.dtype))
    value[test], value[~test] = yes, no
    return value


_EVALUATORS: Mapping[type[ast.expr], Callable[[Any, _Steps], Array]] = {
    ast.Constant: _constant_column,
    ast.Name: _name_column,
    ast.BinOp: _binary_column,
    ast.UnaryOp: _unary_column,
    ast.BoolOp: _boolean_column,
    ast.Compare: _comparison_column,
    ast.IfExp: _conditional_column,
    ast.Call: _call_column,
}
