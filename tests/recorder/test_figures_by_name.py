"""Adapters that write a call's figures as a plain tuple name each beside its value, in the order of the frame."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fdtrace.recorder.agent import wire

AGENT = Path(wire.__file__).parent
PLAIN = "order of `wire.CallFigures`"


def named_figures(text: str) -> list[str]:
    """The names that stand behind the values of each such tuple."""
    (figures,) = re.findall(rf"\(  # [^\n]*{PLAIN}[^\n]*\n(.*?)\n +\)\n", text, re.DOTALL)
    return [line.rpartition("  # ")[2] for line in figures.split("\n")]


@pytest.mark.parametrize("name", [path.name for path in AGENT.glob("*.py") if PLAIN in path.read_text()])
def test_the_names_are_in_the_order_of_the_frame(name: str) -> None:
    assert named_figures((AGENT / name).read_text()) == list(wire.CallFigures._fields)


@pytest.mark.parametrize("name", [path.name for path in AGENT.glob("*.py") if PLAIN in path.read_text()])
def test_a_value_that_has_the_name_of_a_figure_stands_at_it(name: str) -> None:
    """`result.num_running` is no other figure than `num_running`."""
    text = (AGENT / name).read_text()
    for line in text.split("\n"):
        value, _, figure = line.strip().partition(",  # ")
        attribute = value.rpartition(".")[2]
        if figure in wire.CallFigures._fields and attribute in wire.CallFigures._fields:
            assert attribute == figure, line
