"""The printed report, as a terminal, a file and a narrow ASCII console get it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console

from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.history.history import Fidelity, Hang, History, PipelineFigures
from fdtrace.tui.panes.series import Series
from fdtrace.tui.report.chart import tokens_chart
from fdtrace.tui.report.report import histories_json, render_report
from tests.tui.recordings import history_of, lab_history, lab_recording, plain_steps, recording_of

CASE = "speculative"
LIMIT = 1024


def lab_histories() -> list[History]:
    """The recording and two other formulas."""
    return [
        recorded_history(lab_recording(CASE)),
        *(lab_history(CASE, name) for name in ("pr7438", "pr7499")),
    ]


def printed(
    histories: Sequence[History], *, width: int = 100, encoding: str = "utf-8", terminal: bool = False
) -> str:
    """What a console of that width and encoding is sent."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(
        file=file, width=width, force_terminal=terminal, color_system="standard" if terminal else None
    )
    render_report(lab_recording(CASE), histories, console)
    return raw.getvalue().decode(encoding)


def row_of(text: str, name: str) -> list[str]:
    """The cells of a formula's row."""
    return next(line.replace("|", " ").split() for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_tells_what_each_formula_exceeds(width: int) -> None:
    text = printed(lab_histories(), width=width)
    assert row_of(text, "recorded")[:4] == ["recorded", "126", "+184", "1208"]
    assert row_of(text, "pr7438")[:4] == ["pr7438", "0", "-", "832"]
    assert row_of(text, "pr7499")[:4] == ["pr7499", "0", "-", "1024"]
    assert "126 of them over max_num_batched_tokens" in text
    for line in text.splitlines():
        assert len(line) <= width or "max_num_batched_tokens" in line


def test_a_file_gets_no_escape_codes_and_a_terminal_gets_colours() -> None:
    assert "\x1b" not in printed(lab_histories())
    assert "\x1b[" in printed(lab_histories(), terminal=True)


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    codes = re.findall(r"\x1b\[([0-9;]*)m", printed(lab_histories(), terminal=True))
    colours = {part for code in codes for part in code.split(";") if part.isdigit() and int(part) >= 30}
    assert not colours


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_without_blocks_gets_ascii(encoding: str) -> None:
    text = printed(lab_histories(), encoding=encoding, width=80)
    assert text.isascii()
    assert "^" in text
    assert row_of(text, "pr7438")[:2] == ["pr7438", "0"]


def test_a_chart_marks_the_columns_that_exceed_and_no_others() -> None:
    ran = [500] * 300
    ran[150] = LIMIT + 1
    chart = tokens_chart(Series(history_of(plain_steps(ran), LIMIT)), 80)
    text = re.sub(r"\x1b\[[0-9;]*m", "", chart)
    assert text.count("▲") == 1
    assert {len(line) for line in text.splitlines()} == {80}
    limit_row = next(at for at, line in enumerate(text.splitlines()) if line.startswith(f"{LIMIT}┤"))
    marked = next(at for at, line in enumerate(text.splitlines()) if "▲" in line)
    assert marked < limit_row
    column = text.splitlines()[marked].index("▲")
    assert column == pytest.approx(5 + 75 * 150 / 300, abs=1)
    assert "▲" not in tokens_chart(Series(history_of(plain_steps([LIMIT] * 300), LIMIT)), 80)


def test_a_million_steps_make_one_chart_of_the_same_size() -> None:
    chart = tokens_chart(Series(history_of(plain_steps([700] * 1_000_000), LIMIT)), 100)
    assert len(chart.splitlines()) == 15


def test_hangs_and_fidelity_are_told_in_sentences() -> None:
    hung = history_of(plain_steps([5, 6]), LIMIT, name="stuck", hang=Hang(2, "the budget is 0"))
    same = lab_history(CASE, "original")
    fidelity = Fidelity(num_steps=232, num_equal=231, first_divergence=77, explanation="a request came late")
    same = replace(same, outcome=replace(same.outcome, fidelity=fidelity))
    text = printed([same, hung], width=140)
    assert "stuck: hangs at step 2: the budget is 0" in text
    assert "HANGS" in text
    assert "fidelity 99.6%: 231 of 232 recorded steps reproduced; first departs at step 77" in text
    assert "a request came late" in text


@pytest.mark.parametrize("ran", [[], [7]])
def test_recordings_of_no_step_and_of_one(ran: list[int]) -> None:
    recording = recording_of(plain_steps(ran))
    console = Console(file=io.StringIO(), width=80)
    render_report(recording, [recorded_history(recording)], console)
    assert f"{len(ran)} steps" in console.file.getvalue()  # type: ignore[attr-defined]


def test_json_holds_outcomes_and_the_exceeded_steps() -> None:
    loaded = json.loads(json.dumps(histories_json(lab_recording(CASE), lab_histories())))
    recorded, pr7438, _ = loaded["formulas"]
    assert recorded["num_exceeded"] == len(recorded["exceeded_steps"]) == 126
    assert recorded["max_excess"] == 184
    assert pr7438["exceeded_steps"] == []
    assert pr7438["how"] == "rescheduled"
    assert loaded["engine"]["max_num_batched_tokens"] == LIMIT


def as_pipeline(history: History, **figures: float) -> History:
    """The history as one of a pipeline's replay."""
    known = {
        "duration_ms": 9000.0, "first_token_p50_ms": 40.0, "first_token_p95_ms": 200.0,
        "first_token_p50_slower_ms": 40.5, "pace_ms": 7.0, "disturbed": 0.0,
    }  # fmt: skip
    found = PipelineFigures(**(known | figures))
    return replace(history, outcome=replace(history.outcome, order="pipeline", pipeline=found))


def test_each_replay_says_how_calls_and_forwards_followed_each_other() -> None:
    recorded, one, other = lab_histories()
    other = replace(other, outcome=replace(other.outcome, order="lockstep"))
    text = printed([recorded, as_pipeline(one), other], width=200)
    assert "rescheduled, pipeline" in text
    assert "rescheduled, lockstep" in text
    assert (
        "pr7438 as a pipeline: worker, token processor and scheduling loop each on their recorded times"
        in text
    )
    assert "pr7499 in lockstep: a forward after each call, which knows its output" in text
    assert "pr7438: time to first token 40 ms at the median, 200 ms at p95\n" in text
    assert "unsure" not in text
    assert "stood still" not in text
    (found,) = histories_json(lab_recording(CASE), [as_pipeline(one)])["formulas"]
    assert found["order"] == "pipeline"
    assert not found["pipeline"]["is_saturated"]
    assert not found["pipeline"]["is_disturbed"]


def test_what_makes_a_prediction_unsure_is_said() -> None:
    one = lab_histories()[1]
    saturated = printed(
        [as_pipeline(one, first_token_p50_ms=400.0, first_token_p50_slower_ms=480.0)], width=200
    )
    assert "unsure, as most of it is waiting: 480 ms at the median were forwards 2% slower" in saturated
    busy = printed([as_pipeline(one, disturbed=0.12)], width=200)
    assert "the recorded host stood still for 12% of the time" in busy
