"""Where two variants of a sweep part, and which are beside the best."""

from __future__ import annotations

from typing import Any

import numpy as np

from fdtrace.replayer.search.sweep_grid import parse_varied
from fdtrace.replayer.search.sweep_parting import PARTING_COLUMNS, neighbours_of, variant_split_of


def columns(running: list[int], reasons: list[str] | None = None) -> dict[str, Any]:
    count = len(running)
    found: dict[str, Any] = {name: np.ones(count, np.int64) for name in PARTING_COLUMNS}
    return {
        **found,
        "step": np.arange(100, 100 + count),
        "num_running": np.array(running),
        "not_admitted": np.array(reasons or [""] * count, object),
    }


def test_the_first_step_that_differs() -> None:
    one = columns([1, 2, 3, 9], ["", "", "budget", ""])
    parting = variant_split_of(one, columns([1, 2, 4, 4], ["", "", "slots", ""]))
    assert parting is not None
    assert (parting.index, parting.step, parting.differing) == (2, 102, (("num_running", 3, 4),))
    assert parting.why(0) == "the budget is used up"
    assert parting.why(1) == "all sequences are taken"
    assert not parting.ends_one


def test_equal_variants_do_not_part_and_one_may_be_done() -> None:
    assert variant_split_of(columns([1, 2]), columns([1, 2])) is None
    parting = variant_split_of(columns([1, 2]), columns([1, 2, 3]))
    assert parting is not None
    assert (parting.step, parting.ends_one) == (102, True)
    assert parting.differing == (("num_tokens", None, 2),)
    assert variant_split_of(columns([1, 2], ["slots", ""]), columns([1, 2])) is None, (
        "a reason alone changes no step"
    )


def test_the_neighbours_differ_by_one_value_of_one_setting() -> None:
    varied = [parse_varied("a=4,1,2"), parse_varied("b=x,y,z")]
    found = neighbours_of(varied, {"a": 2, "b": "x", "steps": 7})
    assert found == [("a", {"a": 1, "b": "x"}), ("a", {"a": 4, "b": "x"}), ("b", {"a": 2, "b": "y"})]
