"""`fdtrace workload` with what a recording or a tokenizer says: `--like T`, `--tokenizer FILE`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from fdtrace.cli import main

Captured = pytest.CaptureFixture[str]
SIZES = (
    "max_num_batched_tokens",
    "max_num_seqs",
    "num_speculative_tokens",
    "block_size",
    "num_blocks",
    "max_model_len",
)


def case_of(directory: Path, source: str, *options: str) -> dict[str, Any]:
    path, out = directory / "requests", directory / "case.json"
    path.write_text(source)
    assert main(["workload", str(path), "-o", str(out), "--force", *options]) == 0
    case: dict[str, Any] = json.loads(out.read_text())
    return case


def requests(count: int, output: int) -> str:
    lines = ({"timestamp": 100 * i, "input_length": 50, "output_length": output} for i in range(count))
    return "".join(json.dumps(line) + "\n" for line in lines)


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(query).fetchall()


def test_like_takes_sizes_steps_and_acceptances(timed: Path, tmp_path: Path) -> None:
    case = case_of(tmp_path, requests(40, 400), "--like", str(timed))
    assert tuple(case[name] for name in SIZES) == rows_of(timed, f"SELECT {', '.join(SIZES)} FROM engine")[0]
    assert [request["arrival"] for request in case["requests"][:4]] == [0, 5, 10, 15], (
        "a step of it takes 20 ms"
    )
    recorded = dict(
        rows_of(
            timed,
            "SELECT num_accepted_tokens, count(*) FROM step_request WHERE kind = 'decode' AND num_draft_tokens > 0 "
            "GROUP BY ALL",
        )
    )
    drawn = Counter(accepted for request in case["requests"] for accepted in request["accepts"])
    assert len(recorded) > 2
    assert drawn.keys() == recorded.keys()
    for accepted, count in recorded.items():
        share = count / sum(recorded.values())
        assert abs(drawn[accepted] / drawn.total() - share) < 0.03
    notes = " ".join(case["notes"])
    assert f"sizes as those of {timed}" in notes
    assert f"drafts are accepted as in {timed}" in notes


def test_options_go_before_like(timed: Path, tmp_path: Path) -> None:
    given = ["--step-ms", "50", "--accept", "0", "--drafts", "1", "--set", "max_num_seqs=3"]
    case = case_of(tmp_path, requests(4, 30), "--like", str(timed), *given)
    assert [request["arrival"] for request in case["requests"]] == [0, 2, 4, 6]
    assert (case["max_num_seqs"], case["num_speculative_tokens"]) == (3, 1)
    assert {accepted for request in case["requests"] for accepted in request["accepts"]} == {0}


def test_like_needs_times_or_a_step(simulated: Path, tmp_path: Path, capsys: Captured) -> None:
    source, out = tmp_path / "requests", tmp_path / "case.json"
    source.write_text(requests(3, 5))
    arguments = ["workload", str(source), "-o", str(out), "--like", str(simulated)]
    assert main(arguments) == 2
    assert "--step-ms N gives the length of a step" in capsys.readouterr().err
    assert not out.exists()
    assert main([*arguments, "--step-ms", "20"]) == 0


def test_a_tokenizer_counts_the_tokens_of_texts(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "tokenizer.json"
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "long": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.save(str(file))
    texts = "".join(
        json.dumps({"prompt": text, "output_tokens": 3}) + "\n" for text in ("a long b a", "long " * 9)
    )
    case = case_of(tmp_path, texts, "--tokenizer", str(file))
    assert [request["prompt"] for request in case["requests"]] == [4, 9]
    assert "lengths of texts are tokens of tokenizer.json (2)" in case["notes"]
    file.write_text("{}")
    capsys.readouterr()
    assert (
        main(["workload", str(tmp_path / "requests"), "-o", str(tmp_path / "no"), "--tokenizer", str(file)])
        == 2
    )
    assert "is no tokenizer" in capsys.readouterr().err
