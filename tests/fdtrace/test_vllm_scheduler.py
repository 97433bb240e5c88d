"""`--scheduler vllm`: vLLM's own scheduler, where FDTRACE_VLLM_PYTHON names a Python that has vLLM; what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fdtrace.drivers
from fdtrace.schedulers import given_schedulers
from recorder.digest import digests_of
from recorder.loading import restarts
from recorder.recording import MISSING, EngineInfo, Recording
from replayer.compare import Desk
from replayer.history import Fidelity, History, StepRow

PYTHON = os.environ.get("FDTRACE_VLLM_PYTHON", "")
real = pytest.mark.skipif(not PYTHON, reason="FDTRACE_VLLM_PYTHON names no Python that has vLLM")

SIZES = {
    "max_num_batched_tokens": 64,
    "max_num_seqs": 8,
    "num_blocks": 60,
    "block_size": 16,
    "max_model_len": 1024,
    "num_speculative_tokens": 0,
    "spec_method": None,
    "chunked_prefill": True,
    "prefix_caching": False,
}
NGRAM = {"num_speculative_tokens": 4, "spec_method": "ngram"}
ASYNC = {"scheduler_config": {"async_scheduling": True}}

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "ngram": (NGRAM, {}, {}),
    "ngram_few_blocks": ({**NGRAM, "num_blocks": 24}, {}, {}),
    "ngram_prefixes": ({**NGRAM, "prefix_caching": True, "num_blocks": 40}, {}, {}),
    "whole_prompts": ({**NGRAM, "chunked_prefill": False, "max_num_batched_tokens": 1024}, {}, {}),
    "async": ({}, ASYNC, {}),
    "async_few_blocks": ({"num_blocks": 20, "prefix_caching": True}, ASYNC, {}),
    "async_idle": ({}, ASYNC, {"rate": 0.02, "iterations": 1200}),
    "async_drafts": ({"num_speculative_tokens": 3, "spec_method": "eagle"}, ASYNC, {}),
}


def run_of(name: str) -> tuple[dict[str, Any], EngineInfo]:
    """What vLLM's `EngineCore` did, and how it was configured."""
    sizes, recorded, asked = RUNS[name]
    config = {**SIZES, **sizes}
    message = {
        "sizes": config, "recorded": recorded, "seed": 3, "requests": 60, "iterations": 700, "rate": 0.3,
        "longest": 150, **asked,
    }  # fmt: skip
    drivers = Path(fdtrace.drivers.__file__).parent
    program = Path(__file__).with_name("vllm_engine.py")
    done = subprocess.run(
        [PYTHON, str(program), str(drivers), json.dumps(message)],
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    engine = EngineInfo(engine_id=0, name="vllm", version="0", config=recorded, **config)
    return json.loads(done.stdout), engine


def recording_of(run: dict[str, Any], engine: EngineInfo) -> tuple[Recording, Callable[[int], list[StepRow]]]:
    """What a recorder would have written of it, and the rows of its steps."""
    requests, rows = run["requests"], run["rows"]
    number = {request["id"]: i for i, request in enumerate(requests)}
    columns = {name: np.array([step[name] for step in run["steps"]], np.int64) for name in run["steps"][0]}
    columns["step"] = np.arange(len(rows), dtype=np.int64)
    columns["num_decode_tokens"] = np.array([sum(row[2] for row in step if row[1]) for step in rows])
    columns["num_prefill_tokens"] = columns["num_tokens"] - columns["num_decode_tokens"]
    decodes: list[list[list[Any]]] = [[] for _ in requests]
    found = [MISSING] * len(requests)
    last = [MISSING] * len(requests)
    for step, there in enumerate(rows):
        for row in there:
            i = number[row[0]]
            if row[1]:
                decodes[i].append(row)
            elif found[i] == MISSING:
                found[i] = row[3]
            last[i] = step
    hashes = np.empty(len(requests), dtype=object)
    hashes[:] = [request["hashes"][: request["prompt"] // engine.block_size] for request in requests]
    flat = [(i, number[row[0]], row[2], row[4]) for i, step in enumerate(rows) for row in step]
    at, *parts = (np.array(values, np.int64) for values in zip(*flat, strict=True))
    aborted = [MISSING if r["aborted"] is None else r["aborted"] for r in requests]
    ended = [MISSING if r["finished_at"] == MISSING else last[i] for i, r in enumerate(requests)]
    ran: list[list[tuple[bool, int, int, int]]] = [[] for _ in requests]
    for row in (row for step in rows for row in step):
        ran[number[row[0]]].append((row[1], row[3], row[3] + row[2], row[5]))
    recording = Recording(
        engine,
        columns,
        {
            "request": np.arange(len(requests)),
            "request_id": np.array([r["id"] for r in requests], dtype=object),
            "arrived_step": np.array([r["arrived"] for r in requests]),
            "num_prompt_tokens": np.array([r["prompt"] for r in requests]),
            "num_output_tokens": np.array([r["made"] for r in requests]),
            "num_cached_tokens": np.array(found),
            "arrived_at": np.array([r["arrived_at"] for r in requests]),
            "finished_at": np.array([r["finished_at"] for r in requests]),
            "max_tokens": np.array([r["max_tokens"] for r in requests]),
        },
        accepts=np.array([row[5] for one in decodes for row in one], np.int16),
        accept_offsets=np.cumsum([0, *map(len, decodes)]),
        aborted_step=np.array(aborted),
        finished_step=np.array(ended),
        drafts=np.array([row[4] for one in decodes for row in one], np.int16),
        digests=digests_of(at, (parts[0], parts[1], parts[2]), len(rows)),
        block_hashes=hashes if engine.prefix_caching else None,
        vain={i: tuple(restarts(r["prompt"], ran[i])) for i, r in enumerate(requests)},
    )

    def rows_of(step: int) -> list[StepRow]:
        return [StepRow(name, "decode" if d else "prefill", *rest) for name, d, *rest in rows[step]]

    return recording, rows_of


@contextmanager
def replayed(recording: Recording, rows: Callable[[int], list[StepRow]]) -> Iterator[History]:
    """The recording through the real scheduler."""
    desk = Desk(recording, rows)
    (given,) = given_schedulers(["vllm"], PYTHON)
    with given.open(desk.workload.config, {}, recording.engine.config) as driven:
        yield desk.reschedule(driven)


def fidelity(history: History) -> Fidelity:
    assert history.outcome.fidelity is not None
    return history.outcome.fidelity


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_what_the_engine_did_is_reproduced(name: str) -> None:
    run, engine = run_of(name)
    recording, rows = recording_of(run, engine)
    assert recording.num_steps > 100
    if "few_blocks" in name:
        assert recording.steps["num_preempted"].sum() > 5
    if engine.prefix_caching:
        assert recording.requests["num_cached_tokens"].max() > 0
    with replayed(recording, rows) as history:
        found = fidelity(history)
    assert found.explanation == ""
    assert found.share == 1.0
