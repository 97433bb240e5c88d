"""Charts: a step over the limit is seen at every zoom, and nothing else looks like one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fdtrace.recorder.trace.column_values import MISSING
from hypothesis import given
from hypothesis import strategies as st

from fdtrace.replayer.history.history import Hang
from fdtrace.tui.panes.layout import Scale
from fdtrace.tui.panes.series import Series, Window
from fdtrace.tui.panes.step_chart import Chart, draw
from fdtrace.tui.theme import ANSI, ASCII, BLOCKS, DARK, Look, memory_size, tokens
from tests.tui.recordings import history_of, lab_history, plain_steps

LIMIT = 100
LOOK = Look(BLOCKS, DARK)


def lines(chart: Chart) -> list[str]:
    """The plot's rows as text, without the labels at their left."""
    return [row.text[chart.left :] for row in chart.rows]


def fence_of(chart: Chart) -> str:
    """The row of the limit."""
    (row,) = [row for row in chart.rows if row.text.lstrip().startswith(f"{LIMIT}{BLOCKS.label}")]
    return row.text[chart.left :]


@given(
    st.lists(st.integers(0, 180), min_size=1, max_size=300),
    st.integers(0, 300),
    st.integers(1, 300),
    st.integers(24, 120),
    st.integers(6, 40),
)
def test_every_column_with_an_exceeded_step_breaks_the_limits_line_and_no_other(
    ran: list[int], start: int, span: int, width: int, height: int
) -> None:
    series = Series(history_of(plain_steps(ran), LIMIT))
    window = Window.over(0, len(ran)).at(start, span)
    chart = draw(series, window, (width, height), Scale(max(*ran, LIMIT)), LOOK)
    exceeded = series.envelope(window, chart.width).exceeded > 0
    assert len(chart.rows) == height
    assert {row.cell_length for row in chart.rows} == {width}
    assert [glyph == BLOCKS.breach for glyph in fence_of(chart)] == exceeded.tolist()
    marks = next(
        text for text in lines(chart)[lines(chart).index(fence_of(chart)) + 1 :] if set(text) <= set(" ▲")
    )
    assert [glyph == BLOCKS.exceeded for glyph in marks] == exceeded.tolist()


def test_one_token_over_in_a_million_steps_is_seen() -> None:
    ran = [50] * 1_000_000
    ran[654_321] = LIMIT + 1
    series = Series(history_of(plain_steps(ran), LIMIT))
    chart = draw(series, Window.over(0, len(ran)), (60, 12), Scale(LIMIT + 1), LOOK)
    column = Window.over(0, len(ran)).column(654_321, chart.width)
    assert column is not None
    assert fence_of(chart)[column] == BLOCKS.breach
    above = lines(chart)[lines(chart).index(fence_of(chart)) - 1]
    assert [at for at, glyph in enumerate(above) if glyph != " "] == [column]


def test_the_limit_and_the_highest_are_named_at_the_axis() -> None:
    series = Series(lab_history("speculative", "original"))
    chart = draw(series, Window.over(0, 233), (60, 20), Scale(series.peak, series.peak_reserved), LOOK)
    labels = [row.text[: chart.left - 1].strip() for row in chart.rows]
    assert labels[0] == "1208"
    assert "1024" in labels
    assert "126" in labels
    assert "mem" in labels


def test_a_hang_is_hatched_from_its_step_on() -> None:
    hang = Hang(4, "nothing moves")
    series = Series(history_of(plain_steps([50, 60, 70, 80]), LIMIT, hang=hang))
    chart = draw(series, Window.over(0, 8), (6 + 16, 10), Scale(LIMIT), LOOK)
    low = lines(chart)[0]
    assert BLOCKS.hang not in low[: chart.width // 2]
    assert set(low[-(chart.width // 2) + 1 :]) == {BLOCKS.hang}


def test_a_hatch_with_room_says_why_nothing_moves() -> None:
    hang = Hang(2, "the budget is 0 with 2 requests decoding (2 requests running, none waiting)")
    series = Series(history_of(plain_steps([50, 60]), LIMIT, hang=hang))
    chart = draw(series, Window.over(0, 8), (60, 20), Scale(LIMIT), LOOK)
    said = " ".join("".join(lines(chart)).replace(BLOCKS.hang, " ").split())
    assert "HANGS at 2: the budget is 0" in said
    assert "none waiting" not in said


def test_queues_have_rows_of_their_own_on_the_scale_of_all_panes() -> None:
    columns = {**plain_steps([10, 20, 30, 40]), "num_running": np.array([1, 2, 4, 8])}
    columns["num_waiting"] = np.array([0, 0, 3, MISSING])
    series = Series(history_of(columns, LIMIT))
    scale = Scale.of([series])
    assert (scale.running, scale.waiting) == (8, 3)
    chart = draw(series, Window.over(0, 4), (5 + 8, 20), replace(scale, waiting=6), LOOK)
    queues = {row.text[: chart.left - 1].strip(): row.text[chart.left :] for row in chart.rows}
    assert queues["run"] == "▁▁▂▂▄▄██"
    assert queues["wait"] == "    ▄▄  "


def test_rows_mean_the_same_in_every_pane() -> None:
    plain, stalls = plain_steps([10, 20]), {**plain_steps([10, 20]), "num_stalled": np.array([0, 1])}
    histories = [Series(history_of(columns, LIMIT)) for columns in (plain, stalls)]
    charts = [draw(one, Window.over(0, 2), (30, 16), Scale.of(histories), LOOK) for one in histories]
    assert lines(charts[0]).index(fence_of(charts[0])) == lines(charts[1]).index(fence_of(charts[1]))


def test_steps_that_a_recording_lost_are_not_drawn_as_idle() -> None:
    columns = plain_steps([50] * 10)
    columns["step"] = columns["step"] + (columns["step"] >= 5) * 10
    chart = draw(Series(history_of(columns, LIMIT)), Window.over(0, 20), (26, 10), Scale(LIMIT), LOOK)
    bottom = lines(chart)[-3]
    assert BLOCKS.lost in bottom[chart.width // 3 : chart.width // 2]
    assert BLOCKS.lost not in bottom[: chart.width // 5]


def test_ascii_charts_hold_nothing_else() -> None:
    series = Series(lab_history("speculative", "original"))
    scale = Scale(series.peak, series.peak_reserved)
    chart = draw(series, Window.over(0, 290), (40, 16), scale, Look(ASCII, ANSI), departs=7)
    text = "\n".join(row.text for row in chart.rows)
    assert text.isascii()
    assert "!" in text
    assert "^" in text


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (10, 2), (26, 5)])
def test_a_pane_too_small_for_a_chart_still_draws(size: tuple[int, int]) -> None:
    series = Series(lab_history("speculative", "original"))
    chart = draw(series, Window.over(0, 233), size, Scale(series.peak, series.peak_reserved), LOOK)
    assert chart.rows


def test_figures_are_short_enough_for_an_axis() -> None:
    assert [tokens(value) for value in (0, 1436, 16384, 104_000, 1_234_567)] == [
        "0", "1436", "16384", "104k", "1.2M",
    ]  # fmt: skip
    assert [memory_size(value) for value in (512, 3 * 2**30, 75 * 2**30, 2**41)] == [
        "512B", "3.0G", "75G", "2.0T",
    ]  # fmt: skip
