"""Cases and decisions of the real FastDeploy scheduler, and recordings made of them in memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import (
    Acceptance,
    Endings,
    EngineInfo,
    HandoverSteps,
    LoadedDetails,
    Recording,
)
from fdtrace.replayer.workload.from_case import workload_from_case

settings.register_profile("replayer", deadline=None)
settings.load_profile("replayer")

DATA = Path(__file__).parent.parent / "data"
Lines = list[dict[str, Any]]


def read_case(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((DATA / "cases" / f"{name}.json").read_text())
    return case


def read_golden(name: str, version: str) -> Lines:
    with gzip.open(DATA / "golden" / name / f"{version}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def make_recording(case: dict[str, Any], lines: Lines, formula: str, policy: str = "original") -> Recording:
    """What a recorder would have written of a run: steps are the forwards that ran tokens."""
    ran = [line["tokens"] > 0 for line in lines]
    index = np.concatenate([[0], np.cumsum(ran)]).tolist()
    drafts = case.get("num_speculative_tokens", 0)
    if drafts and case.get("role") == "prefill":
        drafts = 1  # as FastDeploy's configuration has it after `FDConfig.postprocess`
    env = {name: str(value) for name, value in case.get("env", {}).items()}
    engine = EngineInfo(
        engine_id=0,
        name="fastdeploy",
        version="lab",
        max_num_batched_tokens=case["max_num_batched_tokens"],
        max_num_seqs=case["max_num_seqs"],
        num_speculative_tokens=drafts or 1,
        spec_method="mtp" if drafts else None,
        block_size=case.get("block_size", 64),
        num_blocks=case["num_blocks"],
        max_model_len=case.get("max_model_len", 32768),
        chunked_prefill=env.get("FD_DISABLE_CHUNKED_PREFILL", "0") == "0",
        prefix_caching=case.get("prefix_caching", False),
        role=case.get("role", "mixed"),
        config={"formula": formula, "policy": policy}
        | {name: case[name] for name in ("prealloc_dec_block_slot_num_threshold",) if name in case},
        env=env,
    )
    handover = _handover(case, lines, index) if engine.role != "mixed" else None
    requests, details = _requests(case, lines, index, handover)
    return Recording(engine, _steps(lines), requests, (), details)


def _handover(case: dict[str, Any], lines: Lines, index: list[int]) -> HandoverSteps:
    """Steps are numbered from 100, and what happened between two of them belongs to the later."""
    names = [spec["id"] for spec in case["requests"] if spec["arrival"] < len(lines)]
    kinds = ("preallocated", "joined", "discarded", "last_ran")
    found = {kind: np.full(len(names), MISSING, dtype=np.int64) for kind in kinds}
    for line in lines:
        step = index[line["step"]] + 100
        for kind in kinds[:3]:
            for name in line[kind]:
                found[kind][names.index(name)] = step
        for row in line["rows"]:
            found["last_ran"][names.index(row[0])] = step
    return HandoverSteps(found["preallocated"], found["joined"], found["discarded"], found["last_ran"])


def _steps(lines: Lines) -> dict[str, Any]:
    rows: list[dict[str, int]] = []
    preempted = stalled = 0
    for line in lines:
        preempted += len(line["preempted"])
        stalled += len(line["stalled"])
        if line["tokens"] == 0:
            continue
        decodes = [tokens for _, kind, tokens, _ in line["rows"] if kind == "decode"]
        rows.append(
            {
                "step": len(rows) + 100,
                "num_tokens": line["tokens"],
                "num_decode_tokens": sum(decodes),
                "num_draft_tokens": sum(decodes) - len(decodes),
                "num_prefill_tokens": line["tokens"] - sum(decodes),
                "num_preempted": preempted,
                "num_stalled": stalled,
                "num_running": line["running"],
                "num_waiting": line["waiting"],
                "num_free_blocks": line["free_blocks"],
                "token_budget": MISSING,
                "num_running_decodes": MISSING,
                "reserved_bytes": MISSING,
            }
        )
        preempted = stalled = 0
    return {name: np.array([row[name] for row in rows], dtype=np.int64) for name in rows[0]}


def _requests(
    case: dict[str, Any], lines: Lines, index: list[int], handover: HandoverSteps | None
) -> tuple[dict[str, Any], LoadedDetails]:
    specs = [spec for spec in case["requests"] if spec["arrival"] < len(lines)]
    forwards = {spec["id"]: 0 for spec in specs}
    made = {spec["id"]: 0 for spec in specs}
    decodes_only = case.get("role") == "decode"
    reasons = {spec["id"]: "" for spec in specs}
    gone: dict[str, dict[str, int]] = {"finished": {}, "aborted": {}}
    by_id = {spec["id"]: spec for spec in specs}
    for line in lines:
        for name in line.get("joined", ()):
            made[name] = int(decodes_only)  # a decode instance is sent the first token
        for name, kind, num_tokens, before in line["rows"]:
            spec = by_id[name]
            if kind == "decode":
                accepts = spec["accepts"]
                made[name] += 1 + (accepts[min(forwards[name], len(accepts) - 1)] if accepts else 0)
                forwards[name] += 1
            elif before + num_tokens >= spec["prompt"] + made[name]:
                made[name] += 1
        for name in line["aborted"]:
            gone["aborted"][name] = index[line["step"]] + 100
        # A request ended with the last forward that had begun: in the prefill role that need not be the line's own.
        failed = [*line.get("discarded", ()), *(line["preempted"] if decodes_only else ())]
        for name in (*line["finished"], *failed):
            gone["finished"][name] = max(index[line["step"] + 1] - 1, 0) + 100
            reasons[name] = "error" if name in failed else "stop"
    hashes: list[list[int] | None] = [None] * len(specs)
    if case.get("prefix_caching"):
        keys = {request.request_id: request.block_key for request in workload_from_case(case).requests}
        size = case.get("block_size", 64)
        for i, s in enumerate(specs):
            key = keys[s["id"]]
            assert key is not None
            hashes[i] = [hash(key(block)) % 2**63 for block in range(s["prompt"] // size)]
    block_hashes = np.empty(len(specs), dtype=object)
    block_hashes[:] = hashes
    # As often as it decoded, the last again and again where the case has no more.
    last = {spec["id"]: spec["accepts"][-1:] or [0] for spec in specs}
    accepts = [
        (spec["accepts"] + last[spec["id"]] * forwards[spec["id"]])[: forwards[spec["id"]]] for spec in specs
    ]
    count = len(specs)
    requests = {
        "request": np.arange(count),
        "request_id": np.array([spec["id"] for spec in specs], dtype=object),
        "arrived_step": np.array([index[spec["arrival"]] + 100 for spec in specs]),
        "num_prompt_tokens": np.array([spec["prompt"] for spec in specs]),
        "max_tokens": np.array([spec.get("max_tokens", spec["output"]) for spec in specs]),
        "finish_reason": np.array([reasons[spec["id"]] for spec in specs], dtype=object),
        "num_output_tokens": np.array([min(made[spec["id"]], spec["output"]) for spec in specs]),
    }
    details = LoadedDetails(
        Endings(
            np.array([gone["finished"].get(spec["id"], MISSING) for spec in specs]),
            np.array([gone["aborted"].get(spec["id"], MISSING) for spec in specs]),
        ),
        Acceptance(
            np.array([n for row in accepts for n in row], dtype=np.int16),
            np.concatenate([[0], np.cumsum([len(row) for row in accepts])]).astype(np.int64),
        ),
        block_hashes=block_hashes,
        handover=handover,
    )
    return requests, details


@pytest.fixture
def case_of() -> Callable[[str], dict[str, Any]]:
    return read_case


@pytest.fixture
def golden_of() -> Callable[[str, str], Lines]:
    return read_golden


@pytest.fixture
def recording_of() -> Callable[..., Recording]:
    return make_recording
