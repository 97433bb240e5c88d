"""What an adapter reads of its engine stands in the column of its name: no two of these figures are equal."""

from __future__ import annotations

from array import array
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.sandbox import SandboxAdapter
from fdtrace.recorder.agent.writer import Writer
from fdtrace.recorder.collector.engine import Decoded
from fdtrace.recorder.collector.one_process import OneProcessEngine
from fdtrace.recorder.collector.part import Part
from fdtrace.recorder.collector.reader import RingReader
from fdtrace.sandbox.framework import FrameworkMemory

SIZE = 1 << 18


def request(number: int, slot: int) -> Any:
    return SimpleNamespace(
        request_id=f"r{number}", num_prompt_tokens=20 + number, max_tokens=30 + number, num_cached_tokens=0, slot=slot,
        block_table=[0] * (2 + number), num_output_tokens=number, num_computed_tokens=40 + number,
    )  # fmt: skip


def recorded(
    directory: Path, running: list[Any], waiting: list[Any], result: Any, runner: Any
) -> tuple[Decoded, dict[int, str]]:
    """One call of the sandbox's scheduler and its forward, hooked; the ids of the requests by number."""
    page = ring.create(str(directory / "1-1.ring"), wire.PROTOCOL, 0, 2, SIZE)
    adapter: Any = SandboxAdapter(SimpleNamespace())  # type: ignore[arg-type]
    adapter.describe = lambda: {"name": "sandbox"}
    scheduler = SimpleNamespace(running=running, waiting=deque(waiting))
    adapter.begin(Writer(page, 2, SIZE, adapter.describe, adapter.snapshot))
    token = adapter.before_schedule(scheduler, (), {})
    adapter.after_schedule(scheduler, (), {}, token, result)
    adapter.after_execute(runner, (), {}, adapter.before_execute(runner, (), {}), True)
    chunk = RingReader(str(directory / "1-1.ring")).read()
    assert chunk is not None
    decoder = OneProcessEngine(0)
    decoder.feed(Part(""), chunk)
    return decoder.take(0), {number: known.request_id for number, known in decoder.ledger.live.items()}


def test_each_figure_of_the_sandbox_stands_in_its_column(tmp_path: Path) -> None:
    running = [request(number, number) for number in range(9)]
    waiting = [request(number, -1) for number in range(20, 31)]
    new = [request(40 + number, 9 + number) for number in range(2)]
    result = SimpleNamespace(
        call=3, token_budget=101, num_scheduled_tokens=102, num_running_decodes=5, num_running=103, num_waiting=104,
        num_free_blocks=105, num_blocks=106, num_missing_blocks=107, not_admitted="slots",
        prefills=[(new[0], 0, 1), (new[1], 0, 1), (running[0], 0, 1)], extended=running[1:6],
        preempted=[(running[8], "", 1, 1)], aborted=[],
    )  # fmt: skip
    runner = SimpleNamespace(
        step=7, memory=FrameworkMemory(201, 202, 203, 204), stalled=[2], seq_lens_this_time=array("i", [1] * 11),
        accept_num=array("i", [1] * 11),
    )  # fmt: skip
    decoded, names = recorded(tmp_path, running, waiting, result, runner)
    ((call,), (step,)) = decoded.calls, decoded.steps
    expected = {
        "call": 3, "num_calls": 1, "idle": 0, "token_budget": 101, "num_scheduled_tokens": 102, "num_running": 103,
        "num_running_decodes": 5, "num_prefilling": 4, "num_waiting": 104, "num_deferred": 0, "num_preallocated": -1,
        "num_chunks": 3, "num_admitted": 2, "num_extended": 5, "num_preempted": 1, "num_aborted": 0,
        "num_free_blocks": 105, "num_missing_blocks": 107, "first_step": 7,
    }  # fmt: skip
    assert {name: call[name][0] for name in expected} == expected
    assert names[call["head"][0]] == waiting[0].request_id
    told = {
        "step": 7, "token_budget": 101, "num_scheduled_tokens": 102, "num_running": 103, "num_running_decodes": 5,
        "num_waiting": 104, "num_preempted": 1, "num_free_blocks": 105, "num_blocks": 106, "num_missing_blocks": 107,
        "allocated_bytes": 201, "reserved_bytes": 202, "peak_allocated_bytes": 203, "peak_reserved_bytes": 204,
        "num_stalled": 1, "num_tokens": 11, "num_prefill_tokens": 3,
    }  # fmt: skip
    assert {name: step[name][0] for name in told} == told
