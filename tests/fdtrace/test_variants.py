"""Variants: how they are written, and what the commands, the library and the screen do with them."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import duckdb
import pytest

import fdtrace
from fdtrace.build_replays import add_replay_arguments
from fdtrace.cli import main
from fdtrace.open_replay_screen import screen_of
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.closed_loop import ArrivalMode
from fdtrace.trace_reader import TraceReader
from fdtrace.tui.prompt.completion import completed
from fdtrace.variants import coming_of, coming_of_variant, is_variant, parse_variant
from tests.fdtrace.test_simulate import case
from tests.tui.screens import inspector_of, of, settled, until

Captured = pytest.CaptureFixture[str]


def test_a_variant_names_settings_and_who_schedules() -> None:
    found = parse_variant(
        "big one: max_num_batched_tokens=16384, formula=min(max_num_seqs, 8) * 2, arrivals=steps", "python"
    )
    assert found.name == "big one"
    assert found.settings == {"max_num_batched_tokens": "16384"}
    assert found.formula is not None
    assert found.formula.name == "big_one"
    assert found.arrivals == "steps"
    unnamed = parse_variant("max_num_seqs=4, policy=release_2_6", "python")
    assert unnamed.name == "max_num_seqs=4, policy=release_2_6"
    assert unnamed.policy is not None


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("few: max_num_seqs=8", True),
        ("max_num_seqs = 8", True),
        ("pr7499", False),
        ("mine: max_num_batched_tokens - num_running_decodes * 4", False),
        ("mine: 1 if num_waiting == 0 else 5", False),
        ("formula.py:Mine", False),
    ],
)
def test_a_variant_is_told_from_a_formula(text: str, is_one: bool) -> None:
    assert is_variant(text) is is_one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("few: 8", "assigns nothing"),
        ("few: max_num_seqs=", "has no value"),
        ("few: K=1, K=2", "given twice in one variant"),
        ("few:", "changes nothing"),
        ("x: formula=pr9999", "pr9999"),
        ("x: acceptances=lucky", "neither drawn nor recorded"),
        ("x: policy=nobody", "no policy"),
        ("x: scheduler=nobody", "names no scheduler"),
        ("x" * 101 + ": K=1", "cannot be called"),
    ],
)
def test_a_variant_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_variant(text, "python")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-w", "max_num_seq=3"], "max_num_seqs? "),
        (["-w", "a: K=1", "-w", "a: K=2"], "'a' is given twice"),
        (["-w", "recorded: K=1"], "the recording's own"),
        (["-w", "a: max_num_seqs=3", "--as-recorded"], "changes no setting"),
        (["-w", "a: max_num_seqs=3, arrivals=sometimes"], "'sometimes' are not known"),
        (["-w", "a: max_num_seqs=3", "--slo", "ttft=soon"], "no objective"),
        (["-w", "a: max_num_batched_tokens=1, arrivals=steps"], "would not start"),
    ],
)
def test_what_is_wrong_is_said(options: list[str], said: str, trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(trace), "--json", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def timed(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace with steps that took what they held: those of the played engine took what the machine let them."""
    path = tmp_path_factory.mktemp("timed") / "t.duckdb"
    shutil.copy(trace, path)
    took = "5000000 + 20000 * num_prefill_tokens + 90000 * num_decode_tokens"
    with duckdb.connect(str(path)) as db:
        db.execute(
            f"CREATE TEMP TABLE began AS SELECT step, (1800000000000000000 + sum({took}) OVER (ORDER BY step) - "
            f"({took}))::BIGINT AS ns FROM step"
        )
        db.execute(
            "UPDATE step SET ts = make_timestamp_ns(ns), schedule_us = 0 FROM began WHERE step.step = began.step"
        )
        db.execute(
            "UPDATE request SET arrived_at = make_timestamp_ns(ns - 1000) FROM began WHERE arrived_step = began.step"
        )
    return path


def test_variants_stand_in_the_report_and_in_json(timed: Path, capsys: Captured) -> None:
    few = ["-w", "few: max_num_seqs=2, arrivals=steps", "-w", "small: max_num_batched_tokens=64"]
    assert main(["replay", str(timed), *few, "--slo", "ttft=100s", "--json"]) == 0
    recorded, first, second = json.loads(capsys.readouterr().out)["formulas"]
    assert [first["name"], second["name"]] == ["few", "small"]
    assert first["settings"] == {"max_num_seqs": 2}
    assert first["num_steps"] > recorded["num_steps"]
    assert (first["clock"]["kind"], second["clock"]["kind"]) == ("steps", "time"), (
        "by time where settings change"
    )
    assert second["limit"] == 64
    assert first["latency"] is None
    for one in (recorded, second):
        assert one["latency"]["num_requests"] > 10
        assert one["latency"]["ttft_us"]["p50"] <= one["latency"]["ttft_us"]["p95"]
        assert one["latency"]["goodput_per_s"] == pytest.approx(one["latency"]["requests_per_s"])
    assert second["clock"]["model"]["num_steps"] > 100
    assert main(["replay", str(timed), *few, "--report"]) == 0
    said = capsys.readouterr().out
    assert "TTFT ms" in said
    assert "time: form" in said


@pytest.mark.parametrize(
    ("arrivals", "clock", "coming"),
    [
        ("steps", "steps", ArrivalMode(closed=False)),
        ("recorded", "time", ArrivalMode(closed=False)),
        ("closed", "time", ArrivalMode(closed=True)),
        ("rate=1.5x", "time", ArrivalMode(1.5, False)),
        ("rate = 2", "time", ArrivalMode(2.0, False)),
    ],
)
def test_how_requests_come(arrivals: str, clock: str, coming: ArrivalMode) -> None:
    assert coming_of(arrivals) == (clock, coming)
    assert coming_of_variant(parse_variant(f"a: K=1, arrivals={arrivals}", "python"), "steps") == (
        clock,
        coming,
    )


@pytest.mark.parametrize("arrivals", ["rate=0", "rate=", "rate=..", "rate=1e9", "often"])
def test_how_they_do_not(arrivals: str) -> None:
    with pytest.raises(UsageError, match="are not known"):
        coming_of(arrivals)


def test_check_holds_a_variant_to_its_own_limit(trace: Path, capsys: Captured) -> None:
    assert (
        main(["check", str(trace), "-w", "exact: formula=exact, max_num_batched_tokens=80, arrivals=steps"])
        == 0
    )
    assert "ok   exact: 0 of" in capsys.readouterr().out
    assert main(["check", str(trace), "-w", "as it was: max_num_seqs=64, arrivals=steps"]) == 1


def test_knobs_say_what_was_recorded(trace: Path, capsys: Captured) -> None:
    assert main(["knobs", str(trace), "--json"]) == 0
    knobs = {knob["name"]: knob for knob in json.loads(capsys.readouterr().out)}
    with fdtrace.open(trace) as opened:
        engine = opened.recording().engine
    assert knobs["max_num_seqs"]["recorded"] == engine.max_num_seqs
    assert knobs["FD_ENC_DEC_BLOCK_NUM"]["kind"] == "whole number"
    assert main(["knobs", str(trace)]) == 0
    assert f"max_num_seqs = {engine.max_num_seqs}" in capsys.readouterr().out


def test_a_workload_is_simulated_with_other_settings(tmp_path: Path, capsys: Captured) -> None:
    few = ["-w", "few: formula=original, max_num_seqs=8", "-w", "K2: formula=original, K=2", "-f", "original"]
    assert main(["simulate", case("speculative"), *few, "--json"]) == 0
    said = capsys.readouterr()
    plain, first, second = json.loads(said.out)["schedulers"]
    assert (plain["name"], first["name"], second["name"]) == ("original", "few", "K2")
    assert first["num_steps"] > plain["num_steps"]
    assert second["peak_tokens"] < plain["peak_tokens"]
    assert "K2: modelled: of the 4 recorded drafts" in said.err
    assert main(["simulate", case("speculative"), "-w", "few: max_num_seqs=8"]) == 2
    assert "does not say by which formula" in capsys.readouterr().err


def test_the_library_takes_variants(timed: Path) -> None:
    with fdtrace.open(timed) as opened:
        recording = opened.recording()
    runs = fdtrace.replay(
        recording, variants={"few": {"max_num_seqs": 2, "arrivals": "steps"}, "small": {"K": 1}}
    )
    assert list(runs) == ["recorded", "few", "small"]
    assert runs["few"].outcome.settings == {"max_num_seqs": 2}
    assert runs["small"].outcome.latency is not None
    assert "recorded drafts" in runs["small"].outcome.modelled[0]
    first = int(runs["few"].steps["step"][3])
    assert runs["few"].explain(first).num_running <= 2
    both = fdtrace.replay(recording, "pr7499", variants="few: max_num_seqs=2, arrivals=steps")
    assert list(both) == ["recorded", "pr7499", "few"]
    assert list(fdtrace.replay(recording)) == ["recorded", "original", "pr7438", "pr7499"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("few: max_num_s", "few: max_num_seqs="),
        ("max_num_b", "max_num_batched_tokens="),
        ("few: K=2,max_m", "few: K=2,max_model_len="),
        ("few: max_num_seqs=", None),
        ("few: max_num_seqs=3", None),
        ("few: ", None),
        ("few: xyz", None),
    ],
)
def test_a_setting_is_completed(text: str, found: str | None) -> None:
    assert completed(text, ["max_num_batched_tokens", "max_num_seqs", "max_model_len"]) == found


async def test_a_variant_is_added_and_edited_on_the_screen(timed: Path) -> None:
    parser = argparse.ArgumentParser()
    add_replay_arguments(parser)
    reader = TraceReader(timed)
    try:
        app = screen_of(reader, parser.parse_args(["-f", "original", str(timed)]))
        async with app.run_test(size=(140, 40)) as pilot:
            await settled(pilot)
            await pilot.press("A", *"few: max_num_s")
            await until(pilot, lambda: of(pilot).prompt.line._suggestion.endswith("max_num_seqs="))
            await pilot.press("right", *"2, arrivals=steps", "enter")
            await until(pilot, lambda: len(app.panes) == 3)
            await settled(pilot)
            few = app.panes[2].job
            assert few.replay.name == "few"
            assert few.series is not None
            assert few.series.history.outcome.settings == {"max_num_seqs": 2}
            await pilot.press("enter")
            await until(pilot, lambda: "budget" in inspector_of(app))
            await pilot.press("escape", "e", *["backspace"] * len("2, arrivals=steps"), "4", "enter")
            await until(pilot, lambda: app.panes[2].job is not few and app.panes[2].job.ended)
            series = app.panes[2].job.series
            assert series is not None
            assert series.history.outcome.settings == {"max_num_seqs": 4}
            assert series.history.outcome.clock is not None
            assert series.history.outcome.clock.kind == "time"
    finally:
        reader.close()
