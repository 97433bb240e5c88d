"""Whatever lies in a ring, the collector ends that ring alone: no crash, no hang, no memory taken for it."""

from __future__ import annotations

import json
import os
import random
import struct
import tempfile
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.collector.reader import BadRing, Position, RingReader
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.session import Session
from tests.recorder.helpers import query

SEGMENTS, SIZE = 2, 1 << 18
WORDS = [
    0,
    1,
    7,
    8,
    15,
    16,
    0xFFFF,
    (1 << 31) - 1,
    1 << 31,
    0xFFFFFFFF,
    1 << 32,
    1 << 62,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


def write(directory: str, name: str, steps: int = 40) -> Path:
    """A ring of an engine of four requests that ran so many steps."""
    path = Path(directory) / name
    page = ring.create(str(path), wire.PROTOCOL, time.time_ns(), SEGMENTS, SIZE)
    rows = [(slot, KeyframeRow(f"r{slot}", 10, 500, 10, 3, 0, 1)) for slot in range(4)]
    engine = {
        "name": "scripted",
        "pid": os.getpid(),
        "max_num_batched_tokens": 100,
        "block_size": 16,
        "num_blocks": 60,
    }
    writer = Writer(page, SEGMENTS, SIZE, lambda: engine, lambda: rows)
    tokens, emitted = memoryview(array("i", [2] * 4)), memoryview(array("i", [1] * 4))
    for step in range(steps):
        writer.boundary()
        if step % 3 == 0:
            writer.blocks([(1, 4 + step)], True)
        if step % 5 == 0:
            writer.event("skipped", "r1", "blocks", {"num_blocks": 3})
        writer.schedule(step, time.time_ns(), 5, "budget", wire.CallFigures(token_budget=100))
        writer.forward(
            step, step, time.time_ns(), 9, -1, wire.AllocatorFigures(1, 2, 3, 4), b"", b"", tokens, emitted
        )
    writer.close()
    path.chmod(0o600)
    return path


@contextmanager
def session() -> Iterator[Session]:
    with tempfile.TemporaryDirectory() as directory:
        made = Session.create(Path(directory) / "t.duckdb")
        try:
            yield made
        finally:
            made.remove_rings()


def collect(made: Session, *, all_end: bool = True) -> list[str]:
    """Record what the rings hold to the end; the notes of the trace. `all_end`: no ring seems to be still written."""
    collector = Collector(made)
    collector.discover()
    collector.read()
    assert collector.ended or not all_end
    collector.finish("exit")
    ((text,),) = query(Path(made.output), "SELECT notes FROM trace")
    notes: list[str] = json.loads(text)
    return notes


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


HEADER_FIELDS = {"segments": (12, "<I"), "segment_size": (16, "<Q"), "pid": (24, "<Q"), "opened": (40, "<Q")}


@pytest.mark.parametrize("name", HEADER_FIELDS)
def test_a_header_that_lies_ends_that_ring_alone(name: str) -> None:
    offset, code = HEADER_FIELDS[name]
    most = (1 << 8 * struct.calcsize(code)) - 1
    values = [0, 1, 3, 12345, 1 << 31, 0xFFFFFFFF, (1 << 64) - 1]
    with session() as made:
        write(made.dir, "1-1.ring")
        for number, value in enumerate(values, 2):
            put(write(made.dir, f"2-{number}.ring", steps=5), offset, struct.pack(code, value & most))
        notes = collect(made)
        assert len(query(Path(made.output), "SELECT step FROM step WHERE engine_id = 0")) == 40
        if name in ("segments", "segment_size"):
            assert all(any(f"2-{number}.ring" in note for note in notes) for number in range(2, 9)), notes


changed = st.tuples(
    st.integers(0, 1 << 30),
    st.lists(
        st.tuples(st.integers(0, 6000), st.sampled_from(WORDS), st.sampled_from([1, 2, 4, 8])),
        min_size=1,
        max_size=12,
    ),
)
"""A seed, and what is written over a ring."""


@settings(max_examples=4, deadline=None)
@given(st.lists(changed, min_size=1, max_size=6))
@example([(0, [(0, 0, 1), (0, 0, 1), (9, 0, 1), (0, 0, 1), (320, 65535, 2)])])  # a request's number over 2^31
@example([(1, [(57, 0, 8)])])  # a ring that says that it is not closed: its writer, this process, still lives
def test_any_corruption_of_rings_leaves_another_whole(
    liars: list[tuple[int, list[tuple[int, int, int]]]],
) -> None:
    with session() as made:
        write(made.dir, "1-1.ring")
        for number, (seed, changes) in enumerate(liars):
            rng, liar = random.Random(seed), write(made.dir, f"2-{number}.ring")
            for at, value, size in changes:
                where = rng.choice([at % ring.PAGE, ring.PAGE + at, ring.PAGE + SIZE + at])
                put(liar, where, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        collect(made, all_end=False)
        trace = Path(made.output)
        assert len(query(trace, "SELECT step FROM step WHERE engine_id = 0")) == 40
        assert query(trace, "SELECT count(*) FROM step_request WHERE engine_id = 0") == [(160,)]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_reader_of_any_bytes_ends(data: st.DataObject) -> None:
    """Bytes that look like frames, wherever one stands in them: chunks, nothing, or an error; and that soon."""
    with tempfile.TemporaryDirectory() as directory:
        path = write(directory, "1-1.ring", steps=data.draw(st.integers(0, 60)))
        words = data.draw(st.lists(st.tuples(st.integers(0, 2000), st.sampled_from(WORDS)), max_size=10))
        for at, value in words:
            put(path, ring.PAGE + 8 * at, struct.pack("<Q", value))
        position = data.draw(
            st.none()
            | st.builds(
                Position,
                st.sampled_from(WORDS),
                st.sampled_from([*WORDS, 4096, 4128]),
                st.sampled_from(WORDS),
            )
        )
        try:
            reader = RingReader(str(path), position)
            for _ in range(1000):
                chunk = reader.read()
                if chunk is None:
                    break
                assert chunk.lost >= 0
                assert all(0 < at < len(chunk.data) for at in chunk.payloads)
            reader.close()
        except BadRing:
            pass


def test_a_row_of_a_batch_that_no_engine_has_takes_no_memory() -> None:
    with session() as made:
        path = write(made.dir, "1-1.ring", steps=3)
        page = path.read_bytes()
        at = page.index(struct.pack("<BBHI", wire.BLOCKS, 1, 0, 1)) + wire.BLOCKS_HEAD.size
        put(path, at, struct.pack("<I", 0xFFFFFFF0))
        notes = collect(made)
        assert any("1-1.ring" in note for note in notes)


ANY_KIND: list[Any] = [7, "x", None, [1], {"a": "\ud800"}, 1e300, True, -5, 1 << 70]


def test_an_engines_row_of_any_kind_is_a_row() -> None:
    with session() as made:
        for number, value in enumerate(ANY_KIND):
            write_engine(Path(made.dir) / f"1-{number}.ring", value)
        collect(made)
        assert query(Path(made.output), "SELECT count(*) FROM engine") == [(len(ANY_KIND),)]
        assert query(Path(made.output), "SELECT count(*) FROM step") == [(len(ANY_KIND),)]


def write_engine(path: Path, value: Any) -> None:
    """A ring of one step, of an engine of whose columns each holds the value."""
    columns = ("name", "pid", "max_num_batched_tokens", "chunked_prefill", "config", "role", "dp_rank")
    page = ring.create(str(path), wire.PROTOCOL, time.time_ns(), SEGMENTS, SIZE)
    writer = Writer(page, SEGMENTS, SIZE, lambda: dict.fromkeys(columns, value), list)
    writer.boundary()
    tokens = memoryview(array("i", []))
    writer.forward(0, 0, time.time_ns(), 9, -1, wire.AllocatorFigures(1, 2, 3, 4), b"", b"", tokens, tokens)
    writer.close()


def test_a_ring_that_is_still_being_made_is_opened_later(tmp_path: Path) -> None:
    path = tmp_path / "1-1.ring"
    path.write_bytes(b"")
    for size in (0, 4096, 8192):
        os.truncate(path, size)
        with pytest.raises(TraceError) as caught:
            RingReader(str(path))
        assert not isinstance(caught.value, BadRing)
