"""Budget formulas: built in, as an expression, as a class of the user's own."""

from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.builtin import BUILTIN
from fdtrace.replayer.formulas.parse import formula_from_class, parse_formula
from fdtrace.replayer.formulas.variables import VARIABLES, Variables

__all__ = ["BUILTIN", "VARIABLES", "Formula", "Variables", "formula_from_class", "parse_formula"]
