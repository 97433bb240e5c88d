"""The budget formulas: what each computes, where it comes from, and which names your own expression can use."""

from __future__ import annotations

import argparse
from collections.abc import Mapping


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace formulas`."""
    parser.add_argument("--json", action="store_true", help="a JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """Print the built-in formulas and the variables."""
    import inspect
    import json
    import textwrap

    from fdtrace.replayer.formulas import BUILTIN, REQUEST_VARIABLES, RULES, VARIABLES

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
        names = {"variables": VARIABLES, "request_variables": REQUEST_VARIABLES, "rules": RULES}
        print(json.dumps({"formulas": formulas, **names}))
        return 0
    for name, formula in BUILTIN.items():
        print(f"{name}\n    {formula.text}\n    from {formula.source}")
        print(textwrap.indent(inspect.getdoc(formula) or "", "    "), end="\n\n")
    print(YOUR_OWN)
    _print_names(VARIABLES)
    print("What chunk_charge, chunk_cap and admit may name too (r.NAME in a class):")
    _print_names(REQUEST_VARIABLES)
    print(
        "Rules besides the budget. The model of FastDeploy takes the first four, --scheduler vllm the last three, "
        "--scheduler transformers none:"
    )
    _print_names(RULES)
    return 0


def _print_names(meanings: Mapping[str, str]) -> None:
    for name, meaning in meanings.items():
        print(f"    {name:<24}{meaning}")


YOUR_OWN = """Your own, as an expression (arithmetic, comparisons, min, max, if/else, and, or, not):
    -f 'mine: max_num_batched_tokens - num_running_decodes * (num_speculative_tokens + 1)'
    -f 'charged: max_num_batched_tokens; charge num_draft_tokens + 1'   the charge is each running decode's, in the loop
    -f 'small: max_num_batched_tokens; chunk_cap 256; admit num_running < 8 or num_prompt_tokens < 4096'
or as a class with budget(self, v) and a method for each rule that it has: charge(self, v), admit(self, v, r), …:
    -f my_formula.py:Mine
What they may name (v.NAME in a class):"""
