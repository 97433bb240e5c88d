"""`simulate -o`: a simulation as a trace that `replay`, `sql`, `check`, `info` and the library open.

A step of a trace is a forward that ran tokens. So the calls of a simulation whose forward had nothing to run are only
in table `call`. A simulation has no clock: every time in the trace but its own creation is NULL.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Hashable
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector.tables import array_of, columns_of
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays
from fdtrace.recorder.trace.read_tables import engine_info
from fdtrace.recorder.write_trace import write_trace
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.replay.simulation import Step
from fdtrace.simulated_log import SimulatedLog
from fdtrace.simulation_result import SimulationResult
from fdtrace.variants import Variant

NO_CLOCK = "simulated by `fdtrace simulate`: no server ran; a simulation has no clock, so its times are NULL"


def write_simulated(path: Path, simulated: SimulationResult) -> None:
    """Write a simulation as a trace.

    Args:
        path: the trace. Nothing may be there.
        simulated: the simulation, after its last step.

    Raises:
        UsageError: a trace cannot hold this configuration.
        TraceError: it cannot be written.
    """
    row, tables = _engine_row(simulated), _Tables(simulated.log)
    ends = f"the simulation {simulated.sentence}" if simulated.sentence else ""
    notes = [NO_CLOCK, *([ends] if ends else []), *simulated.log.workload.notes]
    now = time.time_ns()
    head = (schema.SCHEMA_VERSION, __version__, now, now, "complete", "simulate", json.dumps(notes))
    write_trace(
        path,
        {
            "trace": columns_of(schema.TRACE, [head]),
            "engine": columns_of(schema.ENGINE, [tuple(row.get(name) for name in schema.ENGINE.names)]),
            "step": tables.steps,
            "step_request": tables.step_requests,
            "call": tables.calls,
            "request": tables.requests,
            "event": tables.events,
        },
    )


def check_may_be_written(variant: Variant) -> None:
    """UsageError if a simulation under this variant cannot become a trace."""
    engine = "" if variant.scheduler is None else variant.scheduler.engine
    if engine == "transformers" or (engine == "vllm" and variant.settings):
        raise UsageError(
            f"the simulation of {variant.name} cannot be written as a trace",
            why=f"a recording of {engine} holds the whole configuration that {engine} derived, and a workload does not",
            hint="leave -o away, or record a real server and change its settings: fdtrace replay T -w …",
        )


def _engine_row(simulated: SimulationResult) -> dict[str, Any]:
    """The row of `engine`. UsageError if reading it back would give another configuration."""
    config, policy = simulated.log.workload.config, simulated.policy
    variant = simulated.variant
    formula, scheduler = variant.formula, variant.scheduler
    more = {
        "simulated": {
            "by": variant.name,
            "formula": None if formula is None else formula.text or formula.name,
            "policy": None if policy is None else policy.name,
            "settings": dict(variant.settings),
        },
        "prealloc_dec_block_slot_num_threshold": (
            config.prealloc_threshold if policy is None else policy.threshold(config)
        ),
        "enable_output_caching": config.output_caching,
        **({} if formula is None else {"formula": formula.name}),
        **({} if policy is None else {"policy": policy.name}),
    }
    names = ("max_num_batched_tokens", "max_num_seqs", "num_speculative_tokens", "spec_method", "block_size",
             "num_blocks", "max_model_len", "chunked_prefill", "prefix_caching", "role")  # fmt: skip
    row = {
        "engine_id": 0,
        "name": "fastdeploy" if scheduler is None else scheduler.engine,
        "version": "simulated",
        **{name: getattr(config, name) for name in names},
        "config": json.dumps(more),
        "env": json.dumps(config.env()),
    }
    read = SchedulerConfig.from_engine(engine_info(row))
    differ = [
        field.name for field in fields(config) if getattr(read, field.name) != getattr(config, field.name)
    ]
    if differ:
        raise UsageError(
            "this simulation cannot be written as a trace",
            why=f"a trace would say another {', '.join(differ)} than it had",
            hint="leave -o away, or these settings at their defaults",
        )
    return row


class _Tables:
    """The tables of a simulation; requests by their entry in the workload, steps counted by forwards with tokens."""

    def __init__(self, log: SimulatedLog) -> None:
        self.log = log
        self.entered: list[int] = []
        """For each step of the simulation, the step of the trace that its tasks entered, or the next one."""
        num_forwards = 0
        for step in log.steps:
            self.entered.append(num_forwards)
            num_forwards += step.forward.num_tokens > 0
        self.num_forwards = num_forwards

    def _step_of(self, number: int) -> int:
        return self.entered[number] if number < len(self.entered) else self.num_forwards

    @cached_property
    def _seen(self) -> list[int]:
        """The requests that came while the simulation ran."""
        requests = self.log.workload.requests
        return [i for i, request in enumerate(requests) if request.arrival < len(self.log.steps)]

    @cached_property
    def steps(self) -> ColumnArrays:
        """The columns of `step`."""
        rows: list[dict[str, Any]] = []
        drafts = self._drafts
        num_preempted = num_stalled = 0
        for step in self.log.steps:
            num_preempted += len(step.decision.preempted)
            num_stalled += len(step.forward.stalled)
            if step.forward.num_tokens == 0:
                continue
            values = {
                **_of_call(step),
                "step": len(rows),
                "num_tokens": step.forward.num_tokens,
                "num_prefill_tokens": step.forward.num_prefill_tokens,
                "num_decode_tokens": step.forward.num_decode_tokens,
                "num_draft_tokens": drafts[0][step.number],
                "num_accepted_tokens": drafts[1][step.number],
                "num_preempted": num_preempted,
                "num_stalled": num_stalled,
                "num_blocks": self.log.workload.config.num_blocks,
            }
            num_preempted = num_stalled = 0
            rows.append(values)
        return _columns(schema.STEP, rows)

    @cached_property
    def _drafts(self) -> tuple[list[int], list[int]]:
        """The drafts verified and accepted in each step of the simulation."""
        table, count = self.log.rows, len(self.log.steps)
        drafts, accepted = (
            np.bincount(table[:, 0], table[:, i], count).astype(np.int64).tolist() for i in (6, 5)
        )
        return drafts, accepted

    @cached_property
    def step_requests(self) -> ColumnArrays:
        """The columns of `step_request`."""
        step, request, prefill, tokens, computed, accepted, drafts, blocks = self.log.rows.T
        return {
            "engine_id": np.zeros(len(step), np.int64),
            "step": np.array(self.entered, np.int64)[step],
            "request": request,
            "prefill": prefill,
            "num_tokens": tokens,
            "num_computed_tokens": computed,
            "num_draft_tokens": drafts,
            "num_accepted_tokens": accepted,
            "num_blocks": blocks,
        }

    @cached_property
    def calls(self) -> ColumnArrays:
        """The columns of `call`. Equal calls that follow each other and run nothing are one row."""
        rows: list[dict[str, Any]] = []
        before: dict[str, Any] = {}
        for step in self.log.steps:
            values = self._call(step)
            if not step.forward.num_tokens and values["idle"] and values == before:
                rows[-1]["num_calls"] += 1
                continue
            before = {} if step.forward.num_tokens else values
            if values["idle"] and not (values["num_running"] or values["num_waiting"]):
                before = {}  # an engine without any request adds no row
                continue
            ran = step.forward.num_tokens > 0
            entered = self.entered[step.number] if ran else None
            rows.append({**values, "call": step.number, "num_calls": 1, "first_step": entered})
        return _columns(schema.CALL, rows)

    def _call(self, step: Step) -> dict[str, Any]:
        decision = step.decision
        head = None if step.head is None else self.log.numbers[step.head]
        more = {} if step.role == "mixed" else {"num_preallocated": step.num_preallocated}
        return {
            **_of_call(step),
            **more,
            "idle": decision.is_empty,
            "num_chunks": len(decision.chunks),
            "num_extended": len(decision.extended),
            "num_preempted": len(decision.preempted),
            "num_aborted": len(decision.aborted),
            "head": head,
        }

    @cached_property
    def requests(self) -> ColumnArrays:
        """The columns of `request`, for those that came."""
        rows = []
        config = self.log.workload.config
        for i in self._seen:
            planned, request = self.log.workload.requests[i], self.log.requests[i]
            cached = request.first_computed if config.prefix_caching else 0
            key, full = planned.block_key, planned.num_prompt_tokens // config.block_size
            rows.append(
                {
                    "request": i,
                    "request_id": planned.request_id,
                    "arrived_step": self._step_of(planned.arrival),
                    "num_prompt_tokens": planned.num_prompt_tokens,
                    "max_tokens": planned.num_output_tokens
                    if planned.max_tokens is None
                    else planned.max_tokens,
                    "num_cached_tokens": cached,
                    "num_output_tokens": request.num_output_tokens,
                    "finish_reason": request.finish_reason or None,
                    "block_hashes": None if key is None else [_hash(key(block)) for block in range(full)],
                }
            )
        return _columns(schema.REQUEST, rows)

    @cached_property
    def events(self) -> ColumnArrays:
        """The columns of `event`, by step: what came from outside first."""
        rows: list[dict[str, Any]] = []
        for i in self._seen:
            planned, request = self.log.workload.requests[i], self.log.requests[i]
            rows.append({"kind": "arrived", "request": i, "call": planned.arrival})
            aborted = None if planned.abort_after is None else planned.arrival + planned.abort_after
            if aborted is None or aborted >= len(self.log.steps):
                continue
            if request.finish_reason == "abort" or request.ended is None:  # else it ended by itself before
                rows.append({"kind": "aborted", "request": i, "call": aborted})
        for event in self.log.events:
            detail = None if event.detail is None else json.dumps(event.detail)
            reason = event.reason or None
            rows.append(
                {
                    "kind": event.kind,
                    "request": event.request,
                    "call": event.step,
                    "reason": reason,
                    "detail": detail,
                }
            )
        rows.sort(key=lambda row: row["call"])
        return _columns(schema.EVENT, [{**row, "step": self._step_of(row["call"])} for row in rows])


def _of_call(step: Step) -> dict[str, Any]:
    """What tables `step` and `call` have alike."""
    decision = step.decision
    return {
        "token_budget": decision.token_budget,
        "num_scheduled_tokens": decision.num_scheduled_tokens,
        "num_running": decision.num_running,
        "num_running_decodes": decision.num_running_decodes,
        "num_waiting": decision.num_waiting,
        "num_free_blocks": decision.num_free_blocks,
        "not_admitted": decision.not_admitted,
        "num_missing_blocks": decision.num_missing_blocks,
        "new_token_ratio": step.new_token_ratio,
    }


def _columns(table: Table, rows: list[dict[str, Any]]) -> ColumnArrays:
    """The columns of rows that may leave out what is NULL."""
    columns: ColumnArrays = {}
    for column in table.columns:
        absent = 0 if column.name == "engine_id" else None
        values = [row.get(column.name, absent) for row in rows]
        if column.type == "DOUBLE":
            columns[column.name] = np.array([MISSING if value is None else value for value in values], float)
        else:
            columns[column.name] = array_of(column, values)
    return columns


def _hash(key: Hashable) -> int:
    """A number for the content of a block."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big")
