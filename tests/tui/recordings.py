"""Recordings and histories for these tests: what FastDeploy's own scheduler decided, or tiny ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder import schema
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Acceptance, Endings, EngineInfo, LoadedDetails, Recording
from fdtrace.replayer import BUILTIN, Replay, workload_from_case
from fdtrace.replayer import history_of as run_history
from fdtrace.replayer.history.history import Hang, History, How, Outcome
from fdtrace.replayer.model.events import StepRow

DATA = Path(__file__).parent.parent / "data"
MIB = 2**20
STEP_COLUMNS = {column.name for column in schema.STEP.columns}


def case(name: str) -> dict[str, Any]:
    """A case of the lab."""
    loaded: dict[str, Any] = json.loads((DATA / "cases" / f"{name}.json").read_text())
    return loaded


def golden(name: str, version: str) -> list[dict[str, Any]]:
    """What a version of FastDeploy decided, a dict a step that ran tokens."""
    path = DATA / "golden" / name / f"{version}.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        return [line for line in map(json.loads, lines) if line["tokens"] or line["stalled"]]


def _tokens(line: dict[str, Any], kind: str) -> int:
    return sum(row[2] for row in line["rows"] if row[1] == kind)


def _budget(config: dict[str, Any], version: str, line: dict[str, Any]) -> int:
    """What the version's scheduling call could hand out, from its formula."""
    limit, per_decode = config["max_num_batched_tokens"], config["num_speculative_tokens"] + 1
    decodes = sum(row[1] == "decode" for row in line["rows"]) + len(line["stalled"])
    if version == "original":
        return int(limit)
    if version == "pr7438":
        return int(max(limit - config["max_num_seqs"] * per_decode, min(limit, 512)))
    return int(limit - decodes * per_decode)


def columns(name: str, version: str) -> dict[str, NDArray[Any]]:
    """The columns of `step` that the lab tells; reserved memory grows with the largest step so far."""
    config, lines = case(name), golden(name, version)
    ran = np.array([line["tokens"] for line in lines], np.int64)
    return {
        "step": np.array([line["step"] for line in lines], np.int64),
        "num_tokens": ran,
        "token_budget": np.array([_budget(config, version, line) for line in lines], np.int64),
        "num_scheduled_tokens": np.array(
            [sum(row[2] if row[1] == "prefill" else 1 for row in line["rows"]) for line in lines], np.int64
        ),
        "num_prefill_tokens": np.array([_tokens(line, "prefill") for line in lines], np.int64),
        "num_decode_tokens": np.array([_tokens(line, "decode") for line in lines], np.int64),
        "num_running": np.array([line["running"] for line in lines], np.int64),
        "num_waiting": np.array([line["waiting"] for line in lines], np.int64),
        "num_preempted": np.array([len(line["preempted"]) for line in lines], np.int64),
        "num_stalled": np.array([len(line["stalled"]) for line in lines], np.int64),
        "num_free_blocks": np.array([line["free_blocks"] for line in lines], np.int64),
        "reserved_bytes": (np.maximum.accumulate(ran) * 3 + 2000) * MIB,
    }


def step_rows(name: str, version: str) -> Callable[[int], list[StepRow]]:
    """The requests of a step."""
    drafts = case(name)["num_speculative_tokens"]
    by_step = {line["step"]: line["rows"] for line in golden(name, version)}

    def rows(step: int) -> list[StepRow]:
        return [
            StepRow(request, kind, ran, computed, drafts if kind == "decode" else 0)
            for request, kind, ran, computed in by_step[step]
        ]

    return rows


def recording_of(steps: dict[str, NDArray[Any]], **engine: Any) -> Recording:
    """A recording of given steps and no requests."""
    info: dict[str, Any] = {
        "engine_id": 0, "name": "fastdeploy", "version": "2.5.0", "max_num_batched_tokens": 1024,
        "max_num_seqs": 64, "num_speculative_tokens": 4, "spec_method": "mtp", "block_size": 64,
        "num_blocks": 3000, "max_model_len": 8192,
    }  # fmt: skip
    nothing = np.zeros(0, np.int64)
    requests = {"request": nothing, "request_id": np.zeros(0, object), "arrived_step": nothing}
    return Recording(EngineInfo(**{**info, **engine}), steps, requests, (), LoadedDetails.unknown(0))


def lab_recording(name: str = "speculative") -> Recording:
    """The lab's case as `original` ran it."""
    config = case(name)
    keys = ("max_num_batched_tokens", "max_num_seqs", "num_speculative_tokens", "num_blocks")
    return recording_of(columns(name, "original"), **{key: config[key] for key in keys})


@cache
def case_recording(name: str) -> tuple[Recording, History]:
    """The lab's case with its requests, as the model runs it under `original`; and that history.

    It holds what a trace of that run would, so that replays of it are the lab's.
    """
    workload = workload_from_case(case(name))
    run = Replay(workload, BUILTIN["original"])
    run.run()
    history = run_history(run)
    assert history.request_steps is not None
    ids = [request.request_id for request in workload.requests]
    rows = {request: history.request_steps(request) for request in ids}
    accepts = [np.array(request.accepts, np.int16) for request in workload.requests]
    requests = {
        "request": np.arange(len(ids), dtype=np.int64),
        "request_id": np.array(ids, dtype=object),
        "arrived_step": np.array([request.arrival for request in workload.requests], np.int64),
        "num_prompt_tokens": np.array([r.num_prompt_tokens for r in workload.requests], np.int64),
        "num_output_tokens": np.array([r.num_output_tokens for r in workload.requests], np.int64),
        "max_tokens": np.array([r.num_output_tokens for r in workload.requests], np.int64),
        "finish_reason": np.array(["length"] * len(ids), dtype=object),
    }
    config = workload.config
    keys = ("max_num_batched_tokens", "max_num_seqs", "num_blocks", "block_size", "max_model_len",
            "num_speculative_tokens", "spec_method")  # fmt: skip
    engine = {"version": "2.5.0", **{key: getattr(config, key) for key in keys}}
    info = EngineInfo(0, "fastdeploy", **engine)
    recorded = {name: column for name, column in history.columns.items() if name in STEP_COLUMNS}
    recording = Recording(
        info,
        {**recorded, "reserved_bytes": np.maximum.accumulate(history.columns["num_tokens"]) * MIB},
        requests,
        (),
        LoadedDetails(
            Endings(
                np.array([rows[request][-1][0] if rows[request] else MISSING for request in ids], np.int64),
                np.full(len(ids), MISSING, np.int64),
            ),
            Acceptance(np.concatenate(accepts), np.cumsum([0, *map(len, accepts)])),
        ),
    )
    return recording, history


def lab_history(name: str, version: str, how: How = "rescheduled") -> History:
    """The lab's case as another version ran it."""
    limit = case(name)["max_num_batched_tokens"]
    return history_of(columns(name, version), limit, name=version, how=how, rows=step_rows(name, version))


def history_of(
    steps: dict[str, NDArray[Any]],
    limit: int,
    *,
    name: str = "formula",
    how: How = "rescheduled",
    hang: Hang | None = None,
    rows: Callable[[int], list[StepRow]] = lambda _step: [],
) -> History:
    """A history with its outcome counted from its steps."""
    ran = steps["num_tokens"]
    excess = ran[ran > limit] - limit
    outcome = Outcome(
        num_steps=len(ran),
        num_exceeded=len(excess),
        max_excess=int(excess.max()) if len(excess) else 0,
        peak_tokens=int(ran.max()) if len(ran) else 0,
        total_tokens=int(ran.sum()),
        budget_use=float(ran.mean() / limit) if len(ran) else 0.0,
        num_refused_tokens=None,
        num_preemptions=0,
        num_stalls=0,
        num_unfinished=0,
        hang=hang,
    )
    return History(name, how, limit, steps, outcome, rows)


def plain_steps(tokens: Sequence[int], first: int = 0) -> dict[str, NDArray[Any]]:
    """Steps with nothing but token counts, all of prefills."""
    ran = np.array(tokens, np.int64)
    unknown = np.full(len(ran), MISSING, np.int64)
    names = ("token_budget", "num_running", "num_waiting", "num_free_blocks")
    return {
        "step": np.arange(first, first + len(ran), dtype=np.int64),
        "num_tokens": ran,
        "num_prefill_tokens": ran,
        "num_decode_tokens": np.zeros(len(ran), np.int64),
        "num_preempted": np.zeros(len(ran), np.int64),
        "num_stalled": np.zeros(len(ran), np.int64),
        **dict.fromkeys(names, unknown),
    }
