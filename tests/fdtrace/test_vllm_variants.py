"""Changed settings of vLLM: a recording replayed with them equals a real `EngineCore` stepped with them.

VLLM_PYTHON names a Python that has vLLM. The same given requests meet both engines before the same steps, and
accept the same of their drafts. FDTRACE_TEST_VLLM=all tries every refusal.
"""

from __future__ import annotations

import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.drivers.children import DriverPool
from fdtrace.recorded_rows import RecordedRows
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import EngineInfo, Recording
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import History
from fdtrace.replayer.workload.engine_settings import read_settings
from fdtrace.replayer.workload.under_settings import ChangedSettings
from fdtrace.scheduler_option import given_schedulers
from tests.fdtrace.test_vllm_scheduler import NGRAM, PYTHON, SIZES, real, trace_of
from tests.fdtrace.vllm_process import engine_process

Captured = pytest.CaptureFixture[str]
pytestmark = [real, pytest.mark.timeout(1200), pytest.mark.xdist_group("vllm variants")]

BASES: dict[str, dict[str, Any]] = {
    "plain": {"max_num_batched_tokens": 128},
    "small": {},
    "priorities": {"max_num_batched_tokens": 128, "num_blocks": 70},
    "drafts": {**NGRAM, "max_num_batched_tokens": 128, "num_blocks": 80},
    "prefixes": {"prefix_caching": True, "max_num_batched_tokens": 128, "num_blocks": 80},
}
FIELDS = {
    "num_gpu_blocks_override": "num_blocks",
    "enable_chunked_prefill": "chunked_prefill",
    "enable_prefix_caching": "prefix_caching",
}

CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {"max_num_batched_tokens": 64}),
    ("plain", {"max_num_batched_tokens": 512}),
    ("plain", {"max_num_seqs": 3}),
    ("plain", {"max_num_active_seqs": 4}),
    ("plain", {"max_num_scheduled_tokens": 48}),
    ("plain", {"long_prefill_token_threshold": 32}),
    ("plain", {"long_prefill_token_threshold": 16, "long_prefill_token_threshold_adaptive": True}),
    ("plain", {"enable_chunked_prefill": False, "max_num_batched_tokens": 1024}),
    ("plain", {"watermark": 0.2}),
    ("plain", {"num_gpu_blocks_override": 66, "max_num_seqs": 16}),
    ("plain", {"scheduler_reserve_full_isl": False, "max_num_seqs": 16}),
    ("plain", {"block_size": 32, "num_gpu_blocks_override": 40}),
    ("drafts", {"num_speculative_tokens": 2}),
    ("drafts", {"num_speculative_tokens": 6}),
    ("drafts", {"num_speculative_tokens": 0}),
    ("drafts", {"max_num_batched_tokens": 256, "max_num_seqs": 16}),
    ("prefixes", {"enable_prefix_caching": False}),
    ("prefixes", {"block_size": 32, "num_gpu_blocks_override": 40}),
    ("prefixes", {"max_num_seqs": 4, "num_gpu_blocks_override": 70}),
    ("priorities", {"policy": "priority", "max_num_seqs": 16}),
]


def requests(priorities: bool) -> list[dict[str, Any]]:
    rng = random.Random(5)
    found, step = [], 0
    for i in range(60):
        step += rng.choice((0, 0, 1, 3))
        prompt = rng.choice((20, 60, 150, 300)) + rng.randint(0, 9)
        shared = rng.choice((0, 16, 48)) if prompt > 48 else 0
        found.append(
            {"id": f"r{i}", "arrival": step, "prompt": prompt, "shared": shared, "output": rng.randint(5, 60)}
        )
        if priorities:
            found[-1]["priority"] = i % 4 - 2
    return found


def stepped(config: dict[str, Any], changed: dict[str, Any], *, priorities: bool = False) -> dict[str, Any]:
    """What vLLM's `EngineCore` did with these sizes and settings."""
    asked = {"sizes": config, "recorded": {}, "changed": changed, "seed": 1, "given": requests(priorities)}
    return engine_process(PYTHON).ask(asked)


@cache
def base(name: str) -> tuple[dict[str, Any], EngineInfo]:
    config = {**SIZES, **BASES[name]}
    run = stepped(config, {}, priorities=name == "priorities")
    return run, EngineInfo(engine_id=0, name="vllm", version="0", config={}, **config)


def loaded(name: str, path: Path) -> Recording:
    run, engine = base(name)
    with open_trace(trace_of(run, engine, path)) as trace:
        recording = trace.recording().loaded()
        RecordedRows(trace, 0).check()
    return recording


@pytest.fixture(scope="module")
def children() -> Any:
    with DriverPool() as kept:
        yield kept


def replayed(recording: Recording, given: dict[str, Any], children: DriverPool) -> History:
    changed = ChangedSettings(read_settings(recording.engine, given), "recorded")
    experiment = Experiment(recording, changed_settings=changed)
    (scheduler,) = given_schedulers(["vllm"], PYTHON)
    config = experiment.workload.config
    with scheduler.open(
        config, {}, recording.engine.config, changed=changed.values, children=children
    ) as driven:
        return experiment.reschedule(driven)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "changed"), CHANGES, ids=lambda value: str(value).strip("{}").replace("'", "")
)
def test_changed_settings_are_scheduled_as_by_the_engine(
    name: str, changed: dict[str, Any], tmp_path: Path, children: DriverPool
) -> None:
    recording = loaded(name, tmp_path / "t.duckdb")
    config = {**SIZES, **BASES[name]}
    config.update(
        {FIELDS.get(key, key): value for key, value in changed.items() if FIELDS.get(key, key) in config}
    )
    if changed.get("num_speculative_tokens") == 0:
        config["spec_method"] = None
    run = stepped(config, changed, priorities=name == "priorities")
    history = replayed(recording, changed, children)
    assert history.outcome.fidelity is None
    assert history.outcome.settings == changed
    assert run["rows"] != base(name)[0]["rows"], "these settings change something"
    ran = [
        [
            [row.request_id, row.kind == "decode", row.num_tokens, row.num_computed_tokens]
            for row in history.rows(step)
        ]
        for step in history.columns["step"].tolist()
    ]
    assert ran == [[row[:4] for row in rows] for rows in run["rows"]]
    assert history.columns["num_free_blocks"].tolist() == [one["num_free_blocks"] for one in run["steps"]]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"watermark": 1.5}, "watermark: Input should be less than 1"),
    ({"max_num_active_seqs": 99}, r"max_num_active_seqs \(99\) cannot be greater"),
    ({"long_prefill_token_threshold": 5000}, "cannot be greater than the max_model_len"),
    ({"max_num_batched_tokens": 4}, "must be greater than or equal to max_num_seqs"),
    ({"enable_chunked_prefill": False}, "is smaller than max_model_len"),
    ({"num_gpu_blocks_override": 20}, "do not hold one request of max_model_len"),
    ({"watermarc": 0.1}, "no setting 'watermarc'.*watermark?"),
    ({"policy": "lifo"}, "policy: Input should be 'fcfs' or 'priority'"),
    ({"policy": "priority"}, "priorities of requests are not recorded"),
    ({"prefill_schedule_interval": 4}, "no replay can change prefill_schedule_interval"),
]
if os.environ.get("FDTRACE_TEST_VLLM") != "all":
    REFUSED = REFUSED[::4]  # a refusal ends its process, and the next one imports vLLM again


@pytest.mark.parametrize(("changed", "said"), REFUSED)
def test_what_the_engine_refuses_is_refused(
    changed: dict[str, Any], said: str, tmp_path: Path, children: DriverPool
) -> None:
    recording = loaded("plain", tmp_path / "t.duckdb")
    with pytest.raises(UsageError, match=said):
        replayed(recording, changed, children)


def test_the_list_of_knobs_is_the_installed_versions(tmp_path: Path, capsys: Captured) -> None:
    run, engine = base("plain")
    path = trace_of(run, engine, tmp_path / "t.duckdb")
    assert main(["knobs", str(path), "--json", "--scheduler-python", PYTHON]) == 0
    knobs = {knob["name"]: knob for knob in json.loads(capsys.readouterr().out)}
    assert {
        "max_num_batched_tokens",
        "max_num_seqs",
        "long_prefill_token_threshold",
        "max_model_len",
    } <= knobs.keys()
    assert {"block_size", "num_gpu_blocks_override", "num_speculative_tokens"} <= knobs.keys()
    assert not {"stream_interval", "max_num_queued_reqs", "scheduler_cls"} & knobs.keys()
    assert knobs["max_num_seqs"]["recorded"] == SIZES["max_num_seqs"]
    assert knobs["max_num_seqs"]["range"].startswith("1 or more")
    assert knobs["watermark"]["range"] == "0.0 or more, less than 1.0"
    assert "KV cache blocks" in knobs["watermark"]["text"]


def test_variants_of_the_command_line(tmp_path: Path, capsys: Captured) -> None:
    run, engine = base("plain")
    path = trace_of(run, engine, tmp_path / "t.duckdb")
    options = ["--arrivals", "steps", "--scheduler-python", PYTHON, "--json"]
    few = ["-w", "few: max_num_seqs=3", "-w", "tiny: max_num_batched_tokens=32, scheduler=vllm"]
    assert main(["replay", str(path), *few, *options]) == 0
    recorded, first, second = json.loads(capsys.readouterr().out)["formulas"]
    assert (first["name"], second["name"]) == ("few", "tiny")
    assert first["settings"] == {"max_num_seqs": 3}
    assert first["num_steps"] > recorded["num_steps"]
    assert second["peak_tokens"] <= 32 == second["limit"]
