"""What the benchmarks say of their figures."""

from __future__ import annotations

import pytest

from benchmarks.beside import change


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([10, 11, 12], [13, 14, 15], "slower"),
        ([13, 14, 15], [10, 11, 12], "faster"),
        ([10, 11, 14], [13, 14, 15], ""),
        ([10, 11, 12], [12, 13, 14], ""),
        ([10], [20], ""),
    ],
)
def test_a_change_is_one_that_every_round_shows(before: list[float], now: list[float], expected: str) -> None:
    assert change("a key (ms)", before, now) == expected
    other_way = {"slower": "faster", "faster": "slower", "": ""}[expected]
    assert change("rescheduling (steps a CPU s)", before, now) == other_way
