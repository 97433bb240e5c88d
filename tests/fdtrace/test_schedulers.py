"""`--scheduler`: the real scheduler of a checkout, where FASTDEPLOY_SRC names one; what is said where it cannot run.

FASTDEPLOY_PYTHON is a Python with Paddle and FastDeploy's requirements (default: the one that runs the tests).
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.drivers.driven_scheduler import DrivenScheduler
from fdtrace.replayer import ORIGINAL, POLICIES
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.scheduler_option import DRIVERS, driver_of, given_schedulers
from tests.fdtrace.test_simulate import CASES, NOT_DONE, VERSIONS, case, golden, lines_of
from tests.replayer.conftest import make_recording, read_case
from tests.replayer.test_reschedule import begun_at

Captured = pytest.CaptureFixture[str]

DRAWN = Path(__file__).parent.parent / "data" / "random"
SOURCE = os.environ.get("FASTDEPLOY_SRC", "")
PYTHON = os.environ.get("FASTDEPLOY_PYTHON", sys.executable)
real = pytest.mark.skipif(not SOURCE, reason="FASTDEPLOY_SRC names no checkout of FastDeploy")
OPTIONS = ["--scheduler", f"fastdeploy={SOURCE}", "--scheduler-python", PYTHON]


def simulated(name: str, out: Path) -> list[dict[str, Any]]:
    """What the checkout decides on a case."""
    assert main(["simulate", case(name), "--decisions", str(out), *OPTIONS]) == (name == NOT_DONE)
    return lines_of(out)


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The versions that the checkout may be: those that decide the same where versions differ most."""
    out = tmp_path_factory.mktemp("version") / "out.jsonl"
    told = {name: simulated(name, out) for name in ("speculative", "no_speculation", "tight_blocks")}
    return [
        version for version in VERSIONS if all(lines == golden(name, version) for name, lines in told.items())
    ]


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_case_is_decided_as_by_the_lab(name: str, versions: list[str], tmp_path: Path) -> None:
    decided = simulated(name, tmp_path / "out.jsonl")
    assert versions, "it decides like no version of the lab"
    assert decided == golden(name, versions[0])


@contextmanager
def opened(config: Any) -> Iterator[DrivenScheduler]:
    (given,) = given_schedulers([f"fastdeploy={SOURCE}"], PYTHON)
    with given.open(config, {}) as driven:
        yield driven


@real
@pytest.mark.parametrize("name", ["prefill0", "prefill1", "decode0", "decode1", "case6"])
def test_drawn_cases_and_roles_are_decided_as_recorded(
    name: str, versions: list[str], tmp_path: Path
) -> None:
    """An instance that prefills, one that decodes, and a threshold that is not the default."""
    path = DRAWN / f"{name}.json"
    # 1: its limit of steps cuts a case of which the lab kept so many lines
    assert main(["simulate", str(path), "--decisions", str(tmp_path / "out.jsonl"), *OPTIONS]) in (0, 1)
    recorded = gzip.decompress((DRAWN / f"{name}.{versions[0]}.jsonl.gz").read_bytes()).splitlines()
    assert lines_of(tmp_path / "out.jsonl") == [json.loads(line) for line in recorded]


@real
@pytest.mark.parametrize("name", ["speculative", "shared_prefix"])
def test_a_recording_is_rescheduled_as_by_the_model_of_that_version(name: str, versions: list[str]) -> None:
    """Recorded under `original`; prefixes are known by the hashes of their blocks alone."""
    experiment = Experiment(make_recording(read_case(name), golden(name, "original"), "original"))
    with opened(experiment.workload.config) as driven:
        through = experiment.reschedule(driven)
    (version,) = versions[:1]
    policy = POLICIES.get(version, ORIGINAL)
    model = experiment.reschedule(BUILTIN[version], policy)
    for column in ("num_tokens", "num_prefill_tokens", "num_running", "num_waiting", "num_free_blocks"):
        assert through.columns[column].tolist() == model.columns[column].tolist()
    assert through.outcome.num_refused_tokens is None
    step = int(through.columns["step"][40])
    assert {row.request_id for row in through.rows(step)} == {row.request_id for row in model.rows(step)}


@real
@pytest.mark.parametrize("name", ["speculative", "shared_prefix"])
def test_a_recording_that_began_in_the_middle_is_taken_up(name: str, versions: list[str]) -> None:
    whole = make_recording(read_case(name), golden(name, "original"), "original")
    experiment = Experiment(begun_at(whole, read_case(name), 40))
    with opened(experiment.workload.config) as driven:
        through = experiment.reschedule(driven)
    model = experiment.reschedule(BUILTIN[versions[0]], POLICIES.get(versions[0], ORIGINAL))
    assert through.columns["num_tokens"].tolist() == model.columns["num_tokens"].tolist()
    assert through.columns["num_free_blocks"].tolist() == model.columns["num_free_blocks"].tolist()


@real
def test_a_hang_of_the_real_code_is_found(versions: list[str]) -> None:
    if versions[0] not in ("pr7499", "pr7623", "release_2_6"):
        pytest.skip("this version does not hang")
    experiment = Experiment(
        make_recording(read_case("full_reservation"), golden("full_reservation", "original"), "original")
    )
    with opened(experiment.workload.config) as driven:
        hang = experiment.reschedule(driven).outcome.hang
    assert hang is not None
    assert "16 requests stall" in hang.cause


@real
def test_it_stands_in_one_report_with_the_formulas(trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(trace), "--json", "-f", "original", "-f", "pr7499", *OPTIONS]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["formulas"]]
    assert names == ["recorded", "original", "pr7499", f"fastdeploy={Path(SOURCE).resolve().name}"]


@real
def test_a_configuration_that_it_refuses(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "case.json"
    path.write_text(json.dumps({**read_case("aborts"), "num_blocks": 3}))
    assert main(["simulate", str(path), *OPTIONS]) == 2
    said = capsys.readouterr().err
    assert "refuses this configuration" in said
    assert "num_gpu_blocks_override" in said


# What needs no FastDeploy: a checkout that cannot be driven ------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[str], Path]:
    """A checkout whose scheduler's file is this text."""

    def make(text: str) -> Path:
        file = tmp_path / "src" / "fastdeploy" / "engine" / "sched" / "resource_manager_v1.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
        return tmp_path / "src"

    return make


BROKEN = {
    "import nosuchmodule": "ModuleNotFoundError: No module named 'nosuchmodule'",
    "print('lots', flush=True); import os; os._exit(7)": "ended in the middle of a replay (exit status 7)",
    "raise SystemExit('no')": "ended in the middle of a replay",
    "def (": "cannot be imported",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_checkout_that_cannot_be_driven_is_told(
    text: str, checkout: Callable[[str], Path], capsys: Captured
) -> None:
    assert main(["simulate", case("aborts"), "--scheduler", f"fastdeploy={checkout(text)}"]) == 3
    said = capsys.readouterr()
    assert BROKEN[text] in said.err
    assert "--scheduler-python" in said.err
    assert "Traceback (most" not in said.err
    assert said.out == ""


def test_a_python_may_be_given_relative_to_here(
    checkout: Callable[[str], Path], capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    options = [
        "--scheduler",
        f"fastdeploy={checkout('raise SystemExit(3)')}",
        "--scheduler-python",
        "bin/python",
    ]
    assert main(["simulate", case("aborts"), *options]) == 3
    assert "ended in the middle of a replay (exit status 3)" in capsys.readouterr().err


def test_a_python_that_is_none(checkout: Callable[[str], Path], capsys: Captured) -> None:
    options = ["--scheduler", f"fastdeploy={checkout('')}", "--scheduler-python", "/nowhere/python"]
    assert main(["simulate", case("aborts"), *options]) == 2
    assert "/nowhere/python cannot be started" in capsys.readouterr().err


def test_as_recorded_asks_formulas_alone(
    trace: Path, checkout: Callable[[str], Path], capsys: Captured
) -> None:
    options = ["--as-recorded", "--scheduler", f"fastdeploy={checkout('')}"]
    assert main(["replay", str(trace), "--json", *options]) == 2
    assert "asks formulas alone" in capsys.readouterr().err


def test_equal_names_are_told_apart(checkout: Callable[[str], Path]) -> None:
    where = checkout("")
    texts = [f"fastdeploy={where}", f"fastdeploy={where}/../src"]
    assert [one.name for one in given_schedulers(texts, "python")] == texts
    assert [one.name for one in given_schedulers(texts[:1], "python")] == ["fastdeploy=src"]


# How a real scheduler's simulation ends ----------------------------------------------------------------------


@real
def test_where_it_refuses_the_others_are_printed_all_the_same(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "case.json"
    path.write_text(json.dumps({**read_case("aborts"), "max_num_batched_tokens": 40}))
    out = tmp_path / "out.jsonl"
    assert main(["simulate", str(path), "-f", "original", "--decisions", str(out), *OPTIONS]) == 2
    said = capsys.readouterr()
    assert "original" in said.out
    assert "refuses this configuration" in said.err
    assert "FastDeploy refuses this under original" in said.err, "the model names the same check"
    assert len((tmp_path / "out-original.jsonl").read_text().splitlines()) > 100


NEVER_JOINS = {
    "max_num_seqs": 8,
    "num_blocks": 20,
    "block_size": 16,
    "max_num_batched_tokens": 128,
    "max_model_len": 256,
    "role": "decode",
    "max_steps": 60,
    "requests": [
        *({"id": f"d{i}", "arrival": i, "prompt": 100, "output": 9, "join_after": 9999} for i in range(2)),
        {"id": "e", "arrival": 5, "prompt": 100, "output": 9, "join_after": 1},
    ],
}
NO_EXTENSION = {
    "max_num_seqs": 8,
    "num_blocks": 64,
    "block_size": 16,
    "max_num_batched_tokens": 128,
    "max_model_len": 256,
    "env": {"FD_ENC_DEC_BLOCK_NUM": 0},
    "requests": [{"id": "a", "arrival": 0, "prompt": 100, "output": 60}],
}


@real
@pytest.mark.parametrize(
    ("workload", "cause"),
    [
        (NEVER_JOINS, "2 requests hold 18 of 20 blocks and did not join"),
        (NO_EXTENSION, "1 request stalls, and each call extends by 0 blocks"),
    ],
)
def test_it_hangs_where_the_model_does_and_says_why(
    workload: dict[str, Any], cause: str, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "case.json"
    path.write_text(json.dumps(workload))
    assert main(["simulate", str(path), "-f", "original", "--json", *OPTIONS]) == 1
    model, through = json.loads(capsys.readouterr().out)["schedulers"]
    assert model["hang"]["step"] == through["hang"]["step"]
    assert cause in model["hang"]["cause"]
    assert cause in through["hang"]["cause"]
    assert through["departs_at"] is None


@pytest.mark.parametrize("engine", DRIVERS)
def test_every_engine_has_a_driver(engine: str) -> None:
    assert driver_of(engine).is_file()
