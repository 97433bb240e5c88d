"""The budget formulas: what each computes, where it comes from, and which names your own expression can use."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace formulas`."""
    parser.add_argument("--json", action="store_true", help="a JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """Print the built-in formulas and the variables."""
    import inspect
    import json
    import textwrap

    from fdtrace.replayer.formulas import BUILTIN, VARIABLES

    if args.json:
        formulas = [
            {
                "name": name,
                "text": formula.text,
                "source": formula.source,
                "description": inspect.getdoc(formula),
            }
            for name, formula in BUILTIN.items()
        ]
        print(json.dumps({"formulas": formulas, "variables": dict(VARIABLES)}))
        return 0
    for name, formula in BUILTIN.items():
        print(f"{name}\n    {formula.text}\n    from {formula.source}")
        print(textwrap.indent(inspect.getdoc(formula) or "", "    "), end="\n\n")
    print(YOUR_OWN)
    for name, meaning in VARIABLES.items():
        print(f"    {name:<24}{meaning}")
    return 0


YOUR_OWN = """Your own, as an expression (arithmetic, comparisons, min, max, if/else, and, or, not):
    -f 'mine: max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)'
    -f 'charged: max_num_batched_tokens; charge num_draft_tokens + 1'   the charge is each running decode's, in the loop
or as a class with budget(self, v) and, if it charges decodes, charge(self, v):
    -f my_formula.py:Mine
What they may name (v.NAME in a class):"""
