"""The contract of any adapter (`tests/trace_contract.py`) finds an adapter that lies: each rule here is broken once."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.trace import open_trace
from tests.trace_contract import broken

BEGUN, SIZE = 1_700_000_000_000_000_000, 1 << 18
PROMPT, OUTPUT, BLOCK, BLOCKS = 8, 6, 4, 20
ENGINE = {
    "name": "small", "version": "1", "pid": 1, "host": "h", "role": "mixed", "num_blocks": BLOCKS, "block_size": BLOCK,
    "max_num_batched_tokens": 64, "max_num_seqs": 8, "max_model_len": 512, "config": {}, "prefix_caching": False,
}  # fmt: skip
IDLE = wire.CallFigures(
    token_budget=64, num_scheduled_tokens=0, num_running=1, num_running_decodes=0, num_waiting=0, num_deferred=0,
    num_preempted=0, num_aborted=0, num_free_blocks=BLOCKS, num_blocks=BLOCKS, num_missing_blocks=-1, head=-1,
)  # fmt: skip


class SmallAdapter:
    """Writes what an engine does with one request: its prompt in one chunk, then a decode a step.

    A lie is a change of what is true: `lost`, a forward that it does not write; `held`, blocks added to those that the
    request holds; `free`, blocks added to the free ones.
    """

    def __init__(self, path: Path, lost: int = -1, held: int = 0, free: int = 0) -> None:
        self.path, self.lost, self.held, self.free = path, lost, held, free
        self.session = Session.create(path)
        page = ring.create(f"{self.session.dir}/1-1.ring", wire.PROTOCOL, BEGUN, 4, SIZE)
        self.writer = Writer(page, 4, SIZE, lambda: ENGINE, list)
        self.number = 0

    def record(self) -> Path:
        """The trace of the whole request."""
        self.writer.request("r0", BEGUN, PROMPT, OUTPUT)
        self.writer.boundary()
        for call in range(OUTPUT):
            self._call(call)
        self.writer.finish("r0", "length", OUTPUT)
        self.writer.close()
        Collector(self.session).finish("detach")
        return self.path

    def _call(self, call: int) -> None:
        begins, computed = call == 0, 0 if call == 0 else PROMPT + call - 1
        ran = PROMPT if begins else 1
        held = -(-(computed + ran) // BLOCK)
        self.writer.boundary()
        free = BLOCKS - held + self.free
        did = {"num_scheduled_tokens": ran, "num_running_decodes": int(not begins), "num_free_blocks": free}
        chunks = {"num_chunks": int(begins), "num_admitted": int(begins)}
        self.writer.schedule(call, BEGUN + call * 10**6, 10, "", IDLE._replace(**did, **chunks))
        if begins:
            self.writer.batch((), [(0, KeyframeRow("r0", PROMPT, OUTPUT, 0, held + self.held, 0, 0))])
        else:
            self.writer.blocks([(0, held + self.held)], extended=True)
        if call == self.lost:
            return
        prefills = array("H", [wire.LAST_CHUNK]).tobytes() if begins else b""
        rows = memoryview(array("h", [ran])), memoryview(array("h", [1]))
        memory = wire.AllocatorFigures()
        self.writer.forward(self.number, call, BEGUN + call * 10**6, 100, -1, memory, prefills, b"", *rows)
        self.number += 1


def found(path: Path, **lies: Any) -> list[str]:
    with open_trace(SmallAdapter(path, **lies).record()) as trace:
        return [text.partition(":")[0] for text in broken(trace)]


def test_an_adapter_that_says_what_is_true_breaks_no_rule(tmp_path: Path) -> None:
    assert found(tmp_path / "t.duckdb") == []


@pytest.mark.parametrize(
    ("lies", "rule"),
    [
        ({"lost": 3}, "what an ended request generated came from its steps"),
        ({"lost": OUTPUT - 1}, "what an ended request generated came from its steps"),
        ({"held": 1}, "what a step's requests hold is not free, where no block is shared"),
        ({"held": -1}, "a request's blocks hold what it has computed"),
        ({"free": 1}, "what a step's requests hold is not free, where no block is shared"),
        ({"free": BLOCKS}, "blocks that are free are blocks that there are"),
    ],
)
def test_an_adapter_that_lies_is_found(lies: dict[str, int], rule: str, tmp_path: Path) -> None:
    assert rule in found(tmp_path / "t.duckdb", **lies)
