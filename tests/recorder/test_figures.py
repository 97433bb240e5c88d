"""Each figure of a scheduling call arrives in the column of its name: hook, frame, decoder, part, final file."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from types import SimpleNamespace

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.sandbox import SandboxAdapter
from fdtrace.recorder.agent.writer import Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session
from tests.recorder.helpers import query

CALL = {
    "token_budget": 101, "num_scheduled_tokens": 102, "num_running": 103, "num_running_decodes": 104,
    "num_waiting": 105, "num_free_blocks": 107, "num_blocks": 108, "num_missing_blocks": 109,
}  # fmt: skip
MEMORY = {
    "allocated_bytes": 201, "reserved_bytes": 202, "peak_allocated_bytes": 203, "peak_reserved_bytes": 204,
}  # fmt: skip
ENGINE = {
    "max_num_batched_tokens": 301, "max_num_seqs": 302, "num_speculative_tokens": 303, "block_size": 304,
    "num_blocks": 305, "max_model_len": 306,
}  # fmt: skip


def test_no_figure_lands_in_anothers_column(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "t.duckdb")
    size = 1 << 18
    page = ring.create(f"{session.dir}/1-1.ring", wire.PROTOCOL, time.time_ns(), 2, size)
    adapter = SandboxAdapter(SimpleNamespace())  # type: ignore[arg-type]  # it only keeps it
    writer = Writer(page, 2, size, adapter.describe, adapter.snapshot)
    adapter.begin(writer)
    config = SimpleNamespace(
        **ENGINE, version="played", spec_method="ngram", chunked_prefill=True, prefix_caching=False, formula="original",
        policy="original", seed=1, env={},
    )  # fmt: skip
    scheduler = SimpleNamespace(config=config, running=[], waiting=[])
    token = adapter.before_schedule(scheduler, (), {})
    decided = SimpleNamespace(
        **CALL, call=7, preempted=[], aborted=[], prefills=[], extended=[], not_admitted="blocks"
    )
    adapter.after_schedule(scheduler, (), {}, token, decided)
    runner = SimpleNamespace(
        step=11,
        memory=tuple(MEMORY.values()),
        stalled=[],
        seq_lens_this_time=array("i", [5, 3]),
        accept_num=array("i", [2, 1]),
    )
    adapter.after_execute(runner, (), {}, adapter.before_execute(runner, (), {}), True)
    writer.close()
    collector = Collector(session)
    collector.discover()
    collector.finish("exit")
    for table, figures in (("step", CALL | MEMORY), ("engine", ENGINE)):
        (row,) = query(Path(session.output), f"SELECT {', '.join(figures)} FROM {table}")
        assert dict(zip(figures, row, strict=True)) == figures
    told = "step, not_admitted, num_preempted, num_tokens, num_decode_tokens, num_draft_tokens, num_accepted_tokens"
    assert query(Path(session.output), f"SELECT {told} FROM step") == [(11, "blocks", 0, 8, 8, 6, 1)]
