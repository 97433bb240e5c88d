"""Windows and envelopes: what a chart shows is what the steps say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fdtrace.recorder.trace.column_values import MISSING
from hypothesis import given
from hypothesis import strategies as st

from fdtrace.tui.panes.series import MIN_SPAN, Series, Window
from tests.tui.recordings import history_of, plain_steps

LIMIT = 100


@st.composite
def gapped(draw: Any) -> Series:
    """A series whose step numbers have gaps, as where steps were lost."""
    steps = sorted(draw(st.sets(st.integers(0, 400), max_size=150)))
    ran = draw(st.lists(st.integers(0, 200), min_size=len(steps), max_size=len(steps)))
    columns = plain_steps(ran)
    columns["step"] = np.array(steps, np.int64)
    columns["reserved_bytes"] = np.array(ran, np.int64) + 7
    return Series(history_of(columns, LIMIT))


@given(gapped(), st.integers(0, 400), st.integers(1, 400), st.integers(1, 90))
def test_an_envelope_holds_each_columns_highest_and_mean_and_count(
    series: Series, start: int, span: int, width: int
) -> None:
    window = Window.over(0, 401).at(start, span)
    envelope = series.envelope(window, width)
    starts, ends = window.edges(width)
    for column in range(width):
        inside = (series.step >= starts[column]) & (series.step < ends[column])
        ran = series.tokens[inside]
        assert envelope.steps[column] == len(ran)
        assert envelope.peak[column] == (ran.max() if len(ran) else 0)
        assert envelope.mean[column] == pytest.approx(ran.mean() if len(ran) else 0)
        assert envelope.exceeded[column] == (ran > LIMIT).sum()
        if series.reserved is not None and envelope.reserved is not None:
            assert envelope.reserved[column] == (series.reserved[inside].max() if len(ran) else 0)


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 200))
def test_every_step_is_drawn_in_a_column_that_leads_back_to_it(start: int, span: int, width: int) -> None:
    window = Window.over(0, 1000).at(start, span)
    starts, ends = window.edges(width)
    for step in range(window.start, window.end):
        column = window.column(step, width)
        assert column is not None
        assert 0 <= column < width
        assert starts[column] <= step < ends[column]
        if window.span <= width:
            assert window.step_at(column, width) == step


@given(st.integers(0, 999), st.integers(1, 1000), st.sampled_from([0.5, 2.0, 0.25, 8.0]), st.integers(0, 999))
def test_zooming_keeps_the_step_in_sight(start: int, span: int, factor: float, step: int) -> None:
    window = Window.over(0, 1000).at(start, span)
    step = max(window.start, min(step, window.end - 1))
    zoomed = window.zoom(factor, step)
    assert zoomed.low <= zoomed.start <= step < zoomed.end <= zoomed.high
    assert zoomed.span >= MIN_SPAN


def test_a_window_outside_and_panning_stay_within_the_steps() -> None:
    window = Window.over(10, 110).at(0, 50)
    assert (window.start, window.end) == (10, 60)
    assert window.pan(9).end == 110
    assert window.pan(-9).start == 10
    assert window.around(109).end == 110
    assert window.column(9, 20) is None
    assert window.column(60, 20) is None


def test_a_fitted_window_grows_with_a_longer_history() -> None:
    fitted = Window.over(0, 100)
    assert (fitted.widened(0, 150).start, fitted.widened(0, 150).end) == (0, 150)
    zoomed = fitted.at(20, 30)
    assert (zoomed.widened(0, 150).start, zoomed.widened(0, 150).end) == (20, 50)


def test_next_and_previous_exceeded_steps() -> None:
    series = Series(history_of(plain_steps([50, 101, 100, 130, 99, 140], first=10), LIMIT))
    assert series.exceeded_after(9) == 11
    assert series.exceeded_after(11) == 13
    assert series.exceeded_after(10, 2) == 13
    assert series.exceeded_after(10, 99) == 15
    assert series.exceeded_after(15) is None
    assert series.exceeded_before(15) == 13
    assert series.exceeded_before(15, 99) == 11
    assert series.exceeded_before(11) is None
    assert series.exceeded_in(Window.over(10, 16).at(10, 8)) == 3


def test_unknown_values_are_none_and_zero_is_not() -> None:
    columns = plain_steps([0, 5])
    columns["num_free_blocks"] = np.array([0, MISSING], np.int64)
    series = Series(history_of(columns, LIMIT))
    assert series.value("num_free_blocks", 0) == 0
    assert series.value("num_free_blocks", 1) is None
    assert series.value("num_free_blocks", 2) is None
    assert series.value("no_such_column", 0) is None
    assert series.reserved is None


def test_a_history_departs_at_the_first_step_that_ran_other_tokens() -> None:
    one = Series(history_of(plain_steps([5, 6, 7, 8]), LIMIT))
    other = Series(history_of(plain_steps([5, 6, 9, 8, 1]), LIMIT))
    assert other.departs_from(one) == 2
    assert one.departs_from(one) is None
    late = Series(history_of(plain_steps([6, 7, 1], first=1), LIMIT))
    assert late.departs_from(one) == 3
