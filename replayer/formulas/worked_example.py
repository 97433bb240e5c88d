"""A formula's expression as arithmetic: the numbers of one call take the place of its names."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fdtrace.replayer.formulas.call_rules import split_rules
from fdtrace.replayer.formulas.expression import Uncomputable, compiled
from fdtrace.replayer.formulas.syntax import parse_expression

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"

_SIGNS: Mapping[type[ast.AST], tuple[str, int]] = {
    ast.Add: ("+", 5), ast.Sub: (MINUS, 5), ast.Mult: (TIMES, 6), ast.Div: ("/", 6), ast.FloorDiv: ("//", 6),
    ast.Mod: ("%", 6), ast.Eq: ("==", 4), ast.NotEq: ("!=", 4), ast.Lt: ("<", 4), ast.LtE: ("<=", 4),
    ast.Gt: (">", 4), ast.GtE: (">=", 4), ast.And: ("and", 2), ast.Or: ("or", 1),
}  # fmt: skip
"""Operator -> its sign and its precedence; a higher number binds tighter."""

_CONDITIONAL, _NOT, _NEGATIVE, _ATOM = 0, 3, 7, 9


@dataclass(frozen=True)
class Arithmetic:
    """An expression worked out with the numbers of one call.

    `lines` begins with the expression with its numbers in it; each following line is shorter, and the last one is
    the value. `because` says which side of an outer `min`, `max` or `if` decided, where that is clear.
    """

    text: str
    lines: tuple[str, ...]
    value: int
    because: tuple[str, ...]


def substitute_values(text: str, values: Mapping[str, int]) -> Arithmetic:
    """`text` worked out with `values`. UsageError if it is no expression or cannot be computed."""
    root = parse_expression(text, "this formula")
    lines: list[str] = []
    because = _because(root, values)
    node = _Fill(values).visit(parse_expression(text, "this formula"))
    while not isinstance(node, ast.Constant):
        shown = _shown(node)
        if not lines or lines[-1] != shown:
            lines.append(shown)
        node = _shorter(node)
    value = math.floor(node.value)  # type: ignore[arg-type]
    return Arithmetic(_shown(root), (*lines, number(value)), value, tuple(because))


def budget_and_charge(text: str) -> tuple[str, str]:
    """The expressions of a formula's budget and of its charge, from its text."""
    rules = dict(split_rules(text))
    return rules["budget"], rules.get("charge", "0")


def number(value: float) -> str:
    """A number as it is written in the arithmetic."""
    shown = str(int(value)) if float(value).is_integer() else f"{value:.4g}"
    return shown.replace("-", MINUS)


class _Fill(ast.NodeTransformer):
    """Replaces names by their values."""

    def __init__(self, values: Mapping[str, int]) -> None:
        self.values = values

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(int(self.values[node.id]))


def _value(node: ast.expr) -> Any:
    try:
        return compiled(node)(None)  # it has no names left
    except Uncomputable:
        return math.nan


def _branches(node: ast.AST) -> bool:
    return any(isinstance(inner, (ast.Call, ast.IfExp)) for inner in ast.walk(node))


def _shorter(node: ast.expr) -> ast.expr:
    """The next line: operands without a choice are computed first, then `min`, `max` or `if` chooses."""
    if isinstance(node, ast.IfExp):
        return node.body if _value(node.test) else node.orelse
    if isinstance(node, ast.Call) and not all(isinstance(argument, ast.Constant) for argument in node.args):
        return ast.Call(node.func, [_shorter_operand(argument) for argument in node.args], [])
    if isinstance(node, ast.BinOp) and _branches(node):
        return ast.BinOp(_shorter_operand(node.left), node.op, _shorter_operand(node.right))
    return ast.Constant(_value(node))


def _shorter_operand(node: ast.expr) -> ast.expr:
    return node if isinstance(node, ast.Constant) else _shorter(node)


def _because(root: ast.expr, values: Mapping[str, int]) -> list[str]:
    """Which side an outermost choice took."""
    if isinstance(root, ast.Call):
        assert isinstance(root.func, ast.Name)
        arguments = [(_value(_filled(argument, values)), _shown(argument)) for argument in root.args]
        choose = max if root.func.id == "max" else min
        chosen_value = choose(value for value, _ in arguments)
        chosen = [text for value, text in arguments if value == chosen_value]
        rejected = [(value, text) for value, text in arguments if value != chosen_value]
        if len(chosen) > 1 or not rejected:
            return []
        comparison = "more than" if root.func.id == "max" else "less than"
        rejected_text = ", ".join(_with_value(text, value) for value, text in rejected)
        return [f"{root.func.id} takes {_with_value(chosen[0], chosen_value)}, {comparison} {rejected_text}"]
    if isinstance(root, ast.IfExp):
        holds = bool(_value(_filled(root.test, values)))
        branch = root.body if holds else root.orelse
        verdict = "holds" if holds else "does not hold"
        return [f"`{_shown(root.test)}` {verdict}: the value is {_shown(branch)}", *_because(branch, values)]
    if isinstance(root, ast.BinOp):
        return [*_because(root.left, values), *_because(root.right, values)]
    return []


def _with_value(text: str, value: float) -> str:
    return text if text == number(value) else f"{text} = {number(value)}"


def _filled(node: ast.expr, values: Mapping[str, int]) -> ast.expr:
    copy = ast.parse(ast.unparse(node), mode="eval").body
    filled: ast.expr = _Fill(values).visit(copy)
    return filled


def _shown(node: ast.expr, least: int = 0, tight: bool = False) -> str:
    """A node as text, in parentheses if its precedence is below `least`; `tight`: without spaces."""
    text, precedence = _text(node, tight)
    return f"({text})" if precedence < least else text


def _text(node: ast.expr, tight: bool) -> tuple[str, int]:  # noqa: PLR0911 - one line a kind
    if isinstance(node, ast.Constant):
        value = node.value
        return number(value), _ATOM if value >= 0 else _NEGATIVE  # type: ignore[arg-type, operator]
    if isinstance(node, ast.Name):
        return node.id, _ATOM
    if isinstance(node, ast.BinOp):
        return _binary(node, tight)
    if isinstance(node, ast.Compare):
        signs = [_SIGNS[type(op)][0] for op in node.ops]
        rest = [
            f" {sign} {_shown(operand, 5)}" for sign, operand in zip(signs, node.comparators, strict=True)
        ]
        return _shown(node.left, 5) + "".join(rest), 4
    if isinstance(node, ast.BoolOp):
        sign, precedence = _SIGNS[type(node.op)]
        return f" {sign} ".join(_shown(operand, precedence + 1) for operand in node.values), precedence
    if isinstance(node, ast.UnaryOp):
        if isinstance(node.op, ast.Not):
            return f"not {_shown(node.operand, _NOT)}", _NOT
        sign = MINUS if isinstance(node.op, ast.USub) else "+"
        return sign + _shown(node.operand, _NEGATIVE), _NEGATIVE
    if isinstance(node, ast.IfExp):
        test, yes, no = _shown(node.test, 1), _shown(node.body, 1), _shown(node.orelse)
        return f"{yes} if {test} else {no}", _CONDITIONAL
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return f"{node.func.id}({', '.join(_shown(operand) for operand in node.args)})", _ATOM


def _binary(node: ast.BinOp, tight: bool) -> tuple[str, int]:
    sign, precedence = _SIGNS[type(node.op)]
    product = precedence == 6
    left = _shown(node.left, precedence, product or tight)
    right = _shown(node.right, precedence + 1, product or tight)
    numbers = all(isinstance(operand, (ast.Constant, ast.BinOp)) for operand in (node.left, node.right))
    close = tight or (product and numbers)
    return (f"{left}{sign}{right}" if close else f"{left} {sign} {right}"), precedence
