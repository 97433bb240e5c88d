"""Budget formulas: built in, as an expression, as a class of the user's own."""

from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.builtin import BUILTIN, MODEL_FORMULAS
from fdtrace.replayer.formulas.call_rules import RULES
from fdtrace.replayer.formulas.parse import formula_from_class, parse_formula
from fdtrace.replayer.formulas.variables import REQUEST_VARIABLES, VARIABLES, RequestVariables, Variables

__all__ = [
    "BUILTIN",
    "MODEL_FORMULAS",
    "REQUEST_VARIABLES",
    "RULES",
    "VARIABLES",
    "Formula",
    "RequestVariables",
    "Variables",
    "formula_from_class",
    "parse_formula",
]
