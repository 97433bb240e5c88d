"""Two engines in one trace: `fdtrace replay --ranks` and `--routing`, the library, and the screen."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

import fdtrace
from fdtrace.cli import main
from fdtrace.open_replay_screen import screen_of
from fdtrace.trace_reader import TraceReader
from fdtrace.tui.inspector.ranks_screen import RanksScreen

TABLES = ("engine", "step", "step_request", "request", "event", "call", "call_request")
LATER_US = 300_000


def case(num_requests: int) -> dict[str, Any]:
    return {
        "max_num_batched_tokens": 256,
        "max_num_seqs": 6,
        "num_blocks": 200,
        "requests": [
            {"id": f"n{num_requests}-{i}", "arrival": 3 * i, "prompt": 60 + 37 * (i % 9), "output": 30}
            for i in range(num_requests)
        ],
    }


def simulated(directory: Path, num_requests: int) -> Path:
    workload, trace = directory / f"{num_requests}.json", directory / f"{num_requests}.duckdb"
    workload.write_text(json.dumps(case(num_requests)))
    assert main(["simulate", str(workload), "-f", "original", "-o", str(trace)]) == 0
    return trace


def give_times(db: duckdb.DuckDBPyConnection, engine_id: int) -> None:
    """Steps that take 5 ms and 20 us a token; each request comes just before its step."""
    db.execute(
        """
        UPDATE step SET schedule_us = 0, ts = make_timestamp_ns((1000000000000 + own.us * 1000)::BIGINT)
        FROM (SELECT step AS number, $2 + sum(5000 + 20 * num_tokens) OVER (ORDER BY step)
                     - 5000 - 20 * num_tokens AS us FROM step WHERE engine_id = $1) own
        WHERE engine_id = $1 AND own.number = step
        """,
        [engine_id, engine_id * LATER_US],
    )
    db.execute(
        """
        UPDATE request SET arrived_at = own.at - INTERVAL 1 MICROSECOND
        FROM (SELECT r.request AS number, min(s.ts) AS at FROM request r JOIN step s USING (engine_id)
              WHERE r.engine_id = $1 AND s.step >= r.arrived_step GROUP BY ALL) own
        WHERE engine_id = $1 AND own.number = request
        """,
        [engine_id],
    )


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    many, few, path = simulated(directory, 40), simulated(directory, 10), directory / "t.duckdb"
    shutil.copy(many, path)
    with duckdb.connect(str(path)) as db:
        db.execute(f"ATTACH '{few}' AS other (READ_ONLY)")
        for table in TABLES:
            db.execute(f"INSERT INTO {table} BY NAME SELECT * REPLACE (1 AS engine_id) FROM other.{table}")
        db.execute("DETACH other")
        db.execute("UPDATE engine SET dp_rank = engine_id")
        for engine_id in (0, 1):
            give_times(db, engine_id)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    return code, out, err


def test_the_ranks_of_a_trace_are_printed_side_by_side(
    trace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    code, out, _ = run(capsys, "replay", trace, "--ranks", "--report")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    (first,) = [line for line in lines if line[:2] == ["rank", "0"] and line[2].isdigit()]
    (second,) = [line for line in lines if line[:2] == ["rank", "1"] and line[2].isdigit()]
    assert (first[2], second[2]) == ("40", "10")
    assert "recorded: rank 0 ran 8" in out
    assert "while another rank had room" in out


def test_other_routings_stand_beside_the_recorded_one(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "replay", trace, "--routing", "round_robin,least_tokens", "--json")
    assert code == 0
    runs = json.loads(out)["runs"]
    assert [one["name"] for one in runs] == ["recorded", "same routing", "round_robin", "least_tokens"]
    requests = [[rank["num_requests"] for rank in one["ranks"]] for one in runs]
    assert requests[:3] == [[40, 10], [40, 10], [25, 25]]
    steps = [[rank["num_steps"] for rank in one["ranks"]] for one in runs]
    assert steps[0] == steps[1], "the recorded routing is replayed as it was"
    uneven = [one["imbalance"] for one in runs]
    assert uneven[2]["waited_s"] < uneven[1]["waited_s"]
    assert uneven[1]["share_beside_room"] > 0.7
    assert runs[2]["latency"]["ttft_us"]["p95"] < runs[1]["latency"]["ttft_us"]["p95"]


def test_a_variant_names_its_routing_and_its_settings(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(
        capsys, "replay", trace, "--ranks", "-w", "few: max_num_seqs=2, routing=least_requests",
        "-w", "plain: max_num_seqs=2", "--json",
    )  # fmt: skip
    assert code == 0
    found = {one["name"]: one for one in json.loads(out)["runs"]}
    assert list(found) == ["recorded", "few", "plain"]
    assert found["few"]["routing"] == "least_requests"
    assert found["plain"]["routing"] == "recorded"
    assert found["few"]["imbalance"]["waited_s"] < found["plain"]["imbalance"]["waited_s"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--routing", "moon"], "there is no routing 'moon'"),
        (["--ranks", "--engine", "1"], "--engine is not known for all ranks"),
        (["--ranks", "--as-recorded"], "--as-recorded is not known for all ranks"),
        (["--routing", "vllm", "--arrivals", "steps"], "ranks are not replayed by steps"),
        (["--routing", "vllm", "--arrivals", "closed"], "arrivals=closed is not known for several ranks"),
        (["-w", "a: routing=vllm"], "a has a routing"),
    ],
)
def test_what_cannot_be_is_refused(
    trace: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "replay", trace, "--report", *options)
    assert code == 2
    assert said in err


def test_the_library_gives_the_same(trace: Path) -> None:
    runs = fdtrace.replay_ranks(trace, "round_robin", slo="ttft=1s")
    assert list(runs) == ["recorded", "same routing", "round_robin"]
    assert runs["round_robin"].ranks["num_requests"].tolist() == [25, 25]
    assert runs["recorded"].ranks["rank"].tolist() == ["rank 0", "rank 1"]
    assert runs.table()["share_beside_room"][1] > 0.7
    later = runs["recorded"].steps(1)
    assert later["starts_us"][0] == LATER_US
    with pytest.raises(fdtrace.UsageError, match="no engine 7"):
        runs["recorded"].steps(7)
    with fdtrace.open(trace) as opened:
        assert len(fdtrace.replay_ranks(opened)) == 1


async def test_the_screen_opens_with_the_ranks(trace: Path) -> None:
    import argparse  # noqa: PLC0415

    from fdtrace.commands.replay import add_arguments  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args([str(trace), "--routing", "round_robin", "-f", "pr7499"])
    reader = TraceReader(trace)
    try:
        app = screen_of(reader, args)
        async with app.run_test(size=(120, 40)) as pilot:
            for _ in range(400):
                await pilot.pause(0.05)
                if isinstance(app.screen, RanksScreen) and len(app.screen.runs) == 3:
                    break
            dialog = app.screen
            assert isinstance(dialog, RanksScreen)
            texts = [text for _, text in dialog.lines()]
            assert [name for name in ("recorded", "same routing", "round_robin") if name in texts] == [
                "recorded", "same routing", "round_robin"
            ]  # fmt: skip
            assert any(text.startswith("  rank 1: 25 requests") for text in texts)
            targets = [step for step, _ in dialog.lines() if step is not None]
            await pilot.press("enter")
            await pilot.pause()
            assert app.session.cursor == targets[0]
            await pilot.press("R")
            for _ in range(400):
                await pilot.pause(0.05)
                if isinstance(app.screen, RanksScreen):
                    break
            assert isinstance(app.screen, RanksScreen)
            await pilot.press("escape")
            await pilot.pause()
            assert not isinstance(app.screen, RanksScreen)
    finally:
        reader.close()
