"""`fdtrace export` to request traces and tables, and the way round: trace file, case, simulation, trace file."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.exporting.hashed_blocks import HashedBlocks, hashed_block_size
from fdtrace.recorder import schema
from fdtrace.recorder.errors import UsageError

Captured = pytest.CaptureFixture[str]


def drawn_mooncake(seed: int, count: int = 60) -> list[dict[str, Any]]:
    """Requests of some conversations: each prompt goes on from a prefix of one before it."""
    chance = random.Random(seed)
    known: list[list[int]] = [[]]
    requests, last = [], 0
    for at in range(count):
        prefix = chance.choice(known)
        prefix = prefix[: chance.randint(0, len(prefix))]
        ids = [*prefix, *range(last, last + chance.randint(1, 4))]
        last += 4
        known.append(ids)
        tail = chance.choice((0, chance.randint(1, 511)))
        length = 512 * len(ids) - (512 - tail if tail else 0)
        requests.append(
            {
                "timestamp": 60 * at * chance.randint(1, 2),
                "input_length": length,
                "output_length": 5,
                "hash_ids": ids,
            }
        )
    return sorted(requests, key=lambda request: request["timestamp"])


def prefixes(requests: list[dict[str, Any]], size: int = 512) -> list[list[int]]:
    """For each pair of requests, the full blocks that they share at their beginning."""
    full = [request["hash_ids"][: request["input_length"] // size] for request in requests]
    return [
        [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))
            for y in full
        ]
        for x in full
    ]


def shapes(requests: list[dict[str, Any]]) -> list[tuple[float, int, int]]:
    return [(r["timestamp"], r["input_length"], r["output_length"]) for r in requests]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, requests: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))


def round_trip(directory: Path, requests: list[dict[str, Any]], *sizes: str) -> list[dict[str, Any]]:
    """Trace file, case, simulation, trace, trace file."""
    source, case, trace, out = (
        directory / name for name in ("in.jsonl", "case.json", "t.duckdb", "out.jsonl")
    )
    write_lines(source, requests)
    options = [word for size in sizes for word in ("--set", size)]
    assert main(["workload", str(source), "--step-ms", "20", *options, "-o", str(case)]) == 0
    assert main(["simulate", str(case), "-f", "pr7499", "-o", str(trace)]) == 0
    assert main(["export", str(trace), "--to", "mooncake", "--step-ms", "20", "-o", str(out)]) == 0
    return read_lines(out)


@pytest.mark.parametrize("block_size", [16, 64, 512])
def test_requests_and_prefixes_come_back(block_size: int, tmp_path: Path) -> None:
    requests = drawn_mooncake(block_size)
    back = round_trip(tmp_path, requests, f"block_size={block_size}", "num_blocks=40000")
    assert shapes(back) == shapes(requests)
    assert prefixes(back) == prefixes(requests)
    assert any(any(row[:i]) for i, row in enumerate(prefixes(requests))), "some share a prefix"
    assert [len(request["hash_ids"]) for request in back] == [
        len(request["hash_ids"]) for request in requests
    ]


def test_idle_time_between_requests_comes_back(tmp_path: Path) -> None:
    requests = [
        {"timestamp": at, "input_length": 600, "output_length": 3, "hash_ids": [at, at + 1]}
        for at in (0, 4000, 90_000)
    ]
    assert shapes(round_trip(tmp_path, requests)) == shapes(requests)


def test_blocks_can_have_other_sizes(tmp_path: Path, capsys: Captured) -> None:
    requests = drawn_mooncake(1)
    round_trip(tmp_path, requests, "num_blocks=40000")
    for size in (64, 1024, 16, 32):
        out = tmp_path / f"{size}.jsonl"
        arguments = ["export", str(tmp_path / "t.duckdb"), "--to", "mooncake", "--block-size", str(size)]
        assert main([*arguments, "-o", str(out)]) == 0
        back = read_lines(out)
        assert [len(r["hash_ids"]) for r in back] == [-(-r["input_length"] // size) for r in requests]
        shared = [[size * number for number in row] for row in prefixes(back, size)]
        whole = [[512 * number for number in row] for row in prefixes(requests)]
        for x, (row, known) in enumerate(zip(shared, whole, strict=True)):
            for y in range(
                x
            ):  # up to the engine's 64 tokens, a prompt that ends within a shared block shares it too
                assert row[y] // size == known[y] // size or (
                    size < 512 and known[y] <= row[y] < known[y] + 512
                )
    capsys.readouterr()
    assert main([*arguments[:-1], "100", "-o", str(tmp_path / "no")]) == 2
    assert "blocks of 64 tokens" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_last_block_is_equal_only_if_what_is_known_of_it_is() -> None:
    blocks = HashedBlocks(64, 512)
    first = blocks.ids(700, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    assert blocks.ids(700, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]) == first
    assert blocks.ids(700, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])[0] == first[0]
    assert blocks.ids(700, [1, 2, 3, 4, 5, 6, 7, 8, 9, 11])[1] != first[1]
    assert blocks.ids(701, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])[1] != first[1]
    assert blocks.ids(520, list(range(8)))[1] != blocks.ids(520, list(range(8)))[1], "no hash reaches into it"
    assert blocks.ids(1024, [9, *range(1, 16)])[1] != blocks.ids(1024, [8, *range(1, 16)])[1], (
        "another prefix"
    )
    assert (hashed_block_size(64, 512, given=False), hashed_block_size(48, 512, given=False)) == (512, 48)
    with pytest.raises(UsageError, match="--block-size 100"):
        hashed_block_size(64, 100, given=True)


@pytest.mark.parametrize("to", ["mooncake", "bailian", "azure"])
def test_a_recording_with_times_comes_back_as_a_case(to: str, timed: Path, tmp_path: Path) -> None:
    out, case = tmp_path / "out", tmp_path / "case.json"
    assert main(["export", str(timed), "--to", to, "-o", str(out)]) == 0
    assert main(["workload", str(out), "--step-ms", "20", "-o", str(case)]) == 0
    with duckdb.connect(str(timed), read_only=True) as db:
        rows = db.execute(
            "SELECT arrived_step - min(arrived_step) OVER (), num_prompt_tokens, num_output_tokens FROM request "
            "ORDER BY arrived_step, request"
        ).fetchall()
    assert [
        (r["arrival"], r["prompt"], r["output"]) for r in json.loads(case.read_text())["requests"]
    ] == rows


@pytest.mark.parametrize("to", ["parquet", "csv"])
def test_every_table_is_written(to: str, timed: Path, tmp_path: Path) -> None:
    out = tmp_path / "tables"
    assert main(["export", str(timed), "--to", to, "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {f"{table.name}.{to}" for table in schema.TABLES}
    with duckdb.connect(str(timed), read_only=True) as db:
        for table in schema.TABLES:
            read = f"(SELECT * FROM '{out / table.name}.{to}')"
            counts = db.execute(
                f"SELECT (SELECT count(*) FROM {table.name}), (SELECT count(*) FROM {read})"
            ).fetchall()
            assert counts[0][0] == counts[0][1]
        total = "SELECT sum(num_tokens), max(epoch_ns(ts::TIMESTAMP_NS)) FROM"
        assert db.execute(f"{total} step").fetchall() == db.execute(f"{total} '{out}/step.{to}'").fetchall()


def test_force_replaces_tables_and_nothing_else(timed: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "tables"
    arguments = ["export", str(timed), "--to", "csv", "-o", str(out)]
    assert main(arguments) == 0
    (out / "step.csv").write_text("old")
    (out / "event.csv").unlink()
    assert main(arguments) == 2
    assert "--force to replace the files of an earlier export" in capsys.readouterr().err
    assert (out / "step.csv").read_text() == "old"
    assert main([*arguments, "--force"]) == 0
    assert {path.name for path in out.iterdir()} == {f"{table.name}.csv" for table in schema.TABLES}
    assert (out / "step.csv").read_text().startswith("engine_id,step,")
    for other in ("mine.txt", "step.parquet"):
        (out / other).write_text("mine")
        assert main([*arguments, "--force"]) == 2
        assert f"it holds {other}, which this would not write" in capsys.readouterr().err
        assert (out / other).read_text() == "mine"
        (out / other).unlink()
    (tmp_path / "link").symlink_to(out)
    assert main([*arguments[:-1], str(tmp_path / "link"), "--force"]) == 2
    assert "it is a link" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"tables", "link"}, "nothing half is left behind"


def test_what_export_refuses(timed: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    wrong = {
        "exists already": ["--to", "perfetto"],
        "writes the recording alone": ["--to", "mooncake", "-f", "pr7499", "--force"],
        "--step-ms is 0": ["--to", "perfetto", "--step-ms", "0"],
        "there is no engine 7": ["--to", "perfetto", "--engine", "7", "--force"],
        "cannot be drawn": ["--to", "perfetto", "-f", "pr7499", "--as-recorded", "--force"],
    }
    for message, options in wrong.items():
        assert main(["export", str(timed), *options, "-o", str(out)]) in (2, 3)
        assert message in capsys.readouterr().err
    assert main(["export", str(timed), "--to", "chrome", "-o", str(timed), "--force"]) == 2
    assert "is what is read" in capsys.readouterr().err
    assert main(["export", str(timed), "--to", "csv", "-o", str(tmp_path), "--force"]) == 2
    assert main(["export", str(timed), "--to", "perfetto", "-o", str(tmp_path / "no" / "where")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half is left behind"
    assert main(["export", str(timed), "--to", "azure", "-o", str(out), "--force"]) == 0
    assert out.read_text().startswith("TIMESTAMP")
