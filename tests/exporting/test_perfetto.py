"""`fdtrace export --to perfetto` and `chrome`: what is in the file is what is in the trace."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.timeline import timeline_run
from fdtrace.timeline.draw_run import COUNTERS, STEP_COLUMNS
from tests.exporting.conftest import BEGAN
from tests.exporting.parsed_perfetto import ParsedPerfetto

TOP = "engine 0: fastdeploy, recorded"
TRACK_OF = {column: f"{group}/{name}" for group, counters in COUNTERS for column, name, _ in counters}


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(query).fetchall()


@pytest.fixture(scope="module")
def exported(timed: Path) -> ParsedPerfetto:
    out = timed.with_name("exported.pftrace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            timeline_run, "CHUNK_STEPS", 100
        )  # so that requests run over the borders of many chunks
        assert main(["export", str(timed), "--to", "perfetto", "-o", str(out)]) == 0
    return ParsedPerfetto(out)


def test_each_step_is_a_slice_at_its_time_with_its_figures(timed: Path, exported: ParsedPerfetto) -> None:
    below = exported.below(TOP)
    names = [name for name in STEP_COLUMNS if TRACK_OF[name] in below]
    steps = rows_of(timed, f"SELECT step, epoch_ns(ts), {', '.join(names)} FROM step ORDER BY step")
    zero = exported.realtime_ns
    assert zero == int(BEGAN) - 5_000_000, "time 0 is the first arrival"
    slices = below["steps (forwards)"].slices
    assert [(s.args["step"], s.begin + zero, s.end - s.begin) for s in slices] == [
        (row[0], row[1], 18_000_000) for row in steps
    ]
    assert len(names) > 10
    for at, name in enumerate(names, 2):
        expected = [(row[1] - zero, row[at]) for row in steps if row[at] is not None]
        assert below[TRACK_OF[name]].values == expected, name
    assert TRACK_OF["device_used_bytes"] not in below, "a counter that no step has is left out"


def test_excess_is_told_with_its_arithmetic(timed: Path, exported: ParsedPerfetto) -> None:
    exceeded = rows_of(
        timed, "SELECT step, num_tokens, limit_tokens, excess_tokens FROM exceeded ORDER BY step"
    )
    track = exported.below(TOP)["exceeded (limit 512)"]
    assert len(exceeded) == 54
    assert [(i.args["step"], i.args["num_tokens"], i.args["excess_tokens"]) for i in track.instants] == [
        (step, tokens, excess) for step, tokens, _, excess in exceeded
    ]
    _, tokens, limit, excess = exceeded[0]
    assert track.instants[0].name == f"exceeded by {excess}"
    assert track.instants[0].args["arithmetic"].startswith(f"{tokens} - {limit} = {excess}: ")
    named = [s.args["step"] for s in exported.below(TOP)["steps (forwards)"].slices if "exceeded" in s.name]
    assert named == [row[0] for row in exceeded]
    assert sum(value for _, value in exported.below(TOP)[TRACK_OF["excess"]].values) == sum(
        r[3] for r in exceeded
    )


def test_requests_are_in_lanes_with_all_that_they_ran(timed: Path, exported: ParsedPerfetto) -> None:
    lanes = exported.lanes(TOP, "run")
    running = rows_of(timed, "SELECT max(n) FROM (SELECT count(*) AS n FROM step_request GROUP BY step)")[0][
        0
    ]
    assert len(lanes) >= running
    ran: Counter[str] = Counter()
    chunks: Counter[str] = Counter()
    for lane in lanes:
        name = ""
        for piece in lane.slices:
            if piece.depth == 0:
                name = piece.name
            elif piece.name.startswith("prefill "):
                ran[name] += int(piece.name.removeprefix("prefill "))
                chunks[name] += 1
            elif piece.name.endswith(("decode", "decodes")):
                ran[name] += piece.args["num_tokens"]
    assert ran == dict(
        rows_of(timed, "SELECT request_id, sum(num_tokens)::BIGINT FROM request_timeline GROUP BY ALL")
    )
    assert chunks == dict(
        rows_of(
            timed, "SELECT request_id, count(*) FROM request_timeline WHERE kind = 'prefill' GROUP BY ALL"
        )
    )


def test_decodes_that_follow_each_other_are_one_slice(
    timed: Path, exported: ParsedPerfetto, tmp_path: Path
) -> None:
    out = tmp_path / "each.pftrace"
    assert main(["export", str(timed), "--to", "perfetto", "--each-decode", "-o", str(out)]) == 0
    num_decodes = rows_of(timed, "SELECT count(*) FROM step_request WHERE kind = 'decode'")[0][0]

    def decodes(file: ParsedPerfetto) -> list[str]:
        return [s.name for lane in file.lanes(TOP, "run") for s in lane.slices if "decode" in s.name]

    assert decodes(ParsedPerfetto(out)) == ["decode"] * num_decodes
    joined = decodes(exported)
    assert sum(int(name.split()[0]) if " " in name else 1 for name in joined) == num_decodes
    assert len(joined) < num_decodes / 5


def test_preemptions_are_pauses_and_events(timed: Path, exported: ParsedPerfetto) -> None:
    pauses = [s for lane in exported.lanes(TOP, "run") for s in lane.slices if s.name == "preempted"]
    recorded = rows_of(timed, "SELECT discarded_tokens FROM preemption")
    assert recorded
    assert len(pauses) == len(recorded)
    events = Counter(instant.name for instant in exported.below(TOP)["events"].instants)
    assert events["preempted"] == len(recorded)
    assert not events["arrived"]


def test_waiting_requests_have_places_of_their_own(timed: Path, exported: ParsedPerfetto) -> None:
    waits = [s for lane in exported.lanes(TOP, "wait") for s in lane.slices]
    assert len(waits) == rows_of(timed, "SELECT count(*) FROM request")[0][0]
    assert all(s.end - s.begin >= 5_000_000 for s in waits)
    assert {s.args["num_prompt_tokens"] for s in waits} == {
        row[0] for row in rows_of(timed, "SELECT num_prompt_tokens FROM request")
    }
    calls = exported.below(TOP)["scheduling calls"].slices
    assert len(calls) == rows_of(timed, "SELECT count(*) FROM call")[0][0]


def test_replays_stand_beside_the_recording(timed: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.pftrace"
    few = "few: formula=pr7499, max_num_seqs=8, arrivals=steps"
    assert main(["export", str(timed), "--to", "perfetto", "-f", "original", "-w", few, "-o", str(out)]) == 0
    file = ParsedPerfetto(out)
    recorded, same, changed = file.tops()
    assert recorded == TOP
    assert same.startswith("original, replayed")
    assert changed.startswith("few, replayed")
    steps = "steps (forwards)"
    shape = [
        [(s.args["step"], s.name, s.begin, s.end) for s in file.below(top)[steps].slices]
        for top in (recorded, same)
    ]
    assert shape[0] == shape[1], "under its own formula, the replay is the recording"
    ran = [
        sorted((s.name, s.begin, s.end) for lane in file.lanes(top, "run") for s in lane.slices)
        for top in (recorded, same)
    ]
    assert ran[0] == ran[1]
    assert len(file.below(changed)[steps].slices) > len(shape[0])
    assert "exceeded (limit 512)" not in file.below(changed)
    assert len(file.lanes(changed, "run")) == 8


def test_a_trace_without_times_is_drawn_by_steps(simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.pftrace"
    assert main(["export", str(simulated), "--to", "perfetto", "--step-ms", "5", "-o", str(out)]) == 0
    file = ParsedPerfetto(out)
    slices = file.below(f"{TOP} (no clock: by steps)")["steps (forwards)"].slices
    assert [s.begin for s in slices] == [5_000_000 * i for i in range(len(slices))]
    assert file.realtime_ns == 0, "it has no time of day"


def test_chrome_holds_the_same(timed: Path, exported: ParsedPerfetto, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    assert main(["export", str(timed), "--to", "chrome", "-o", str(out)]) == 0
    events = json.loads(out.read_text())["traceEvents"]
    tracks = exported.tracks.values()
    kinds = Counter(event["ph"] for event in events)
    assert kinds["B"] == kinds["E"] == sum(len(track.slices) for track in tracks)
    assert kinds["i"] == sum(len(track.instants) for track in tracks)
    assert kinds["C"] == sum(len(track.values) for track in tracks)
    tids = {event["tid"]: event["args"]["name"] for event in events if event.get("name") == "thread_name"}
    begun = [event for event in events if event["ph"] == "B" and tids[event["tid"]] == "steps (forwards)"]
    slices = exported.below(TOP)["steps (forwards)"].slices
    assert [(event["ts"], event["args"]["step"]) for event in begun] == [
        (s.begin / 1000, s.args["step"]) for s in slices
    ]
