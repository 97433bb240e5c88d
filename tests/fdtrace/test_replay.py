"""`fdtrace replay` on a real trace: every kind of formula in one report, clocks, devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fdtrace.cli import main
from fdtrace.replayer.formulas import MODEL_FORMULAS

Captured = pytest.CaptureFixture[str]


def test_every_built_in_formula_an_expression_and_a_class_in_one_report(
    trace: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "half.py"
    file.write_text("class Half:\n    def budget(self, v):\n        return v.max_num_batched_tokens // 2\n")
    expression = "mine: max_num_batched_tokens - num_running_decodes * (num_draft_tokens + 1)"
    given = [*MODEL_FORMULAS, expression, f"{file}:Half"]
    options = [part for text in given for part in ("-f", text)]
    names = ["recorded", *MODEL_FORMULAS, "mine", "Half"]
    for how in ([], ["--as-recorded"]):
        assert main(["replay", str(trace), "--json", *options, *how]) == 0
        found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["formulas"]}
        assert list(found) == names
        assert {one["how"] for one in found.values()} == {"recorded", "as recorded" if how else "rescheduled"}
        same = (
            "num_exceeded",
            "peak_tokens",
            "num_steps",
            "total_tokens",
            "num_refused_tokens",
            "exceeded_steps",
        )
        assert [found["mine"][name] for name in same] == [found["pr7623"][name] for name in same]
        assert found["pr7499"]["num_exceeded"] == 0 < found["original"]["num_exceeded"]
    assert main(["replay", str(trace), "--report", *options]) == 0
    said = capsys.readouterr().out
    rows = [line.split()[0] for line in said.splitlines() if line.split() and line.split()[0] in names]
    assert rows[: len(names)] == names
    assert said.count("clock: requests arrive by recorded step") == 1


def test_a_clock_by_time_tells_its_fit(trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(trace), "--report", "-f", "pr7499", "--clock", "time"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "clock: requests arrive by recorded time" in said
    assert (
        "R2 " in said or "time: form " in said
    )  # by how evenly the machine ran: its tokens alone, or the batch
    assert main(["replay", str(trace), "--json", "-f", "pr7499", "--clock", "time"]) == 0
    recorded, pr7499 = json.loads(capsys.readouterr().out)["formulas"]
    assert recorded["clock"] is None
    assert pr7499["clock"]["kind"] == "time"
    assert pr7499["clock"]["durations"]["num_steps"] > 100
    assert main(["replay", str(trace), "--json", "--as-recorded", "--clock", "time"]) == 2


SIZES = {"1KiB": 1024, "1.5 kB": 1500, "80GiB": 80 * 2**30, "2TB": 2 * 10**12, "512b": 512}


@pytest.mark.parametrize("text", SIZES)
def test_a_device_of_a_size(text: str, trace: Path, capsys: Captured) -> None:
    assert (
        main(["replay", str(trace), "--json", "--as-recorded", "-f", "original", "--device-memory", text])
        == 0
    )
    recorded, original = json.loads(capsys.readouterr().out)["formulas"]
    assert recorded["device_bytes"] == original["device_bytes"] == SIZES[text]
    assert recorded["memory"]["column"] in ("reserved_bytes", "peak_reserved_bytes")
    holds = recorded["reserved_high_water"] <= SIZES[text]
    assert (recorded["out_of_memory_step"] is None) == holds


@pytest.mark.parametrize("text", ["80", "GiB", "-1GiB", "80 apples", "0B"])
def test_what_is_no_size(text: str, trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(trace), "--json", f"--device-memory={text}"]) == 2
    assert "--device-memory 80GiB" in capsys.readouterr().err
