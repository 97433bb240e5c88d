"""From frames to columns, in memory: any history, flushed and resumed anywhere, decodes to the same rows."""

from __future__ import annotations

import json
import mmap
import os
import random
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdtrace.recorder import schema
from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.one_process import OneProcessEngine
from fdtrace.recorder.collector.reader import Position, RingReader

SEQS = 6


class Scripted:
    """A tiny engine whose every forward is drawn: it writes frames, and keeps its own account of each step."""

    def __init__(
        self, path: Path, rng: random.Random, segment_size: int = 1 << 18, segments: int = 8
    ) -> None:
        self.rng = rng
        page = ring.create(str(path), wire.PROTOCOL, time.time_ns(), segments, segment_size)
        self.writer = Writer(page, segments, segment_size, lambda: {"name": "scripted"}, self.rows)
        self.held: dict[int, dict[str, Any]] = {}
        self.step, self.made = 0, 0
        self.account: list[tuple[int, str, str, int, int, int]] = []

    def rows(self) -> list[tuple[int, KeyframeRow]]:
        return [
            (row, KeyframeRow(r["id"], r["prompt"], 99, r["computed"], r["blocks"], 0, r["out"]))
            for row, r in self.held.items()
        ]

    def run_step(self) -> None:
        rng, writer = self.rng, self.writer
        writer.boundary()
        joined, vacated = [], []
        for row in range(SEQS):
            if row in self.held and rng.random() < 0.1:
                gone = self.held.pop(row)
                vacated.append(row)
                writer.finish(gone["id"], "stop", gone["out"])
            elif row not in self.held and rng.random() < 0.4:
                prompt = rng.randint(1, 40)
                request: dict[str, Any] = {
                    "id": f"r{self.made}",
                    "prompt": prompt,
                    "computed": 0,
                    "blocks": rng.randint(1, 9),
                    "out": 0,
                }
                self.made += 1
                writer.request(request["id"], time.time_ns(), prompt, 99)
                self.held[row] = request
                joined.append((row, KeyframeRow(request["id"], prompt, 99, 0, request["blocks"], 0, 0)))
        if vacated or joined:
            writer.batch(vacated, joined)
        tokens, emitted, prefills = array("i", [0] * SEQS), array("i", [0] * SEQS), array("H")
        grown = []
        for row, r in self.held.items():
            if rng.random() < 0.15:
                continue
            if r["computed"] < r["prompt"]:
                chunk = rng.randint(1, r["prompt"] - r["computed"])
                tokens[row], emitted[row] = chunk, rng.randint(0, 1)
                last = r["computed"] + chunk == r["prompt"]
                prefills.append(row | (wire.LAST_CHUNK if last else 0))
                kind, advance, made = "prefill", chunk + last, int(last)
            else:
                tokens[row], made = rng.randint(1, 4), 0
                made = emitted[row] = rng.randint(1, tokens[row])
                kind, advance = "decode", made
                if rng.random() < 0.3:
                    r["blocks"] += 1
                    grown.append((row, r["blocks"]))
            self.account.append((self.step, r["id"], kind, tokens[row], r["computed"], r["blocks"]))
            r["computed"] += advance
            r["out"] += made
        if grown:
            writer.blocks(grown, True)
        figures = wire.CallFigures(token_budget=100, num_scheduled_tokens=7, num_running=len(self.held))
        writer.schedule(self.step, time.time_ns(), 5, "budget", figures)
        memory = wire.AllocatorFigures()
        writer.forward(
            self.step, self.step, time.time_ns(), 9, -1, memory, prefills.tobytes(), b"", memoryview(tokens),
            memoryview(emitted),
        )  # fmt: skip
        self.step += 1


class Collected:
    """Reads a ring into plain rows; `restart` goes on from the state alone, as after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[tuple[Any, ...]] = []
        self.steps: list[tuple[int, int]] = []
        self.requests: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.reader, self.decoder = RingReader(str(path)), OneProcessEngine(0)

    def read(self) -> None:
        while (chunk := self.reader.read()) is not None:
            self.decoder.feed(EngineRing(""), chunk)

    def flush(self) -> None:
        out = self.decoder.take(1)
        names: dict[int, str] = getattr(self, "names", {})
        names |= {row[1]: row[2] for row in out.requests}
        names |= {number: request.request_id for number, request in self.decoder.ledger.live.items()}
        self.names = names
        self.requests += out.requests
        self.events += out.events
        for columns in out.steps:
            self.steps += list(zip(columns["step"].tolist(), columns["num_tokens"].tolist(), strict=True))
        for columns in out.step_requests:
            keys = ("step", "request", "prefill", "num_tokens", "num_computed_tokens", "num_blocks")
            for step, request, prefill, *figures in zip(
                *(columns[key].tolist() for key in keys), strict=True
            ):
                self.rows.append((step, names[request], "prefill" if prefill else "decode", *figures))

    def restart(self) -> None:
        saved = json.loads(
            json.dumps({"position": vars(self.reader.position), "decoder": self.decoder.state()})
        )
        self.reader.close()
        self.reader = RingReader(str(self.path), Position(**saved["position"]))
        self.decoder = OneProcessEngine.from_state(saved["decoder"])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), pauses=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_history_flushed_and_resumed_anywhere_is_the_engines_own(seed: int, pauses: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "1-1.ring"
        engine = Scripted(path, random.Random(seed))
        collected = Collected(path)
        for pause in pauses:
            for _ in range(pause):
                engine.run_step()
                if engine.rng.random() < 0.3:
                    collected.read()
            collected.flush()
            collected.restart()
        collected.read()
        collected.flush()
        assert sorted(collected.rows) == sorted(engine.account)
        totals: dict[int, int] = dict.fromkeys(range(engine.step), 0)
        for step, _, _, tokens, *_ in engine.account:
            totals[step] += tokens
        assert dict(collected.steps) == totals
        outputs = {row[2]: row[8] for row in collected.requests}
        live = {
            request.request_id: request.num_output_tokens
            for request in collected.decoder.ledger.live.values()
        }
        assert live == {r["id"]: r["out"] for r in engine.held.values()}
        assert len(outputs) + len(live) == engine.made


def test_every_figure_reaches_the_column_of_its_name(tmp_path: Path) -> None:
    """No two figures are equal, so that two that change places are seen."""
    page = ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, 1 << 18)
    request = KeyframeRow("r0", 11, 12, 13, 14, 15, 16)
    writer = Writer(page, 2, 1 << 18, dict, lambda: [(0, request)])
    writer.boundary()
    figures = wire.CallFigures(*range(101, 101 + len(wire.CallFigures._fields)))
    memory = wire.AllocatorFigures(
        allocated_bytes=201, reserved_bytes=202, peak_allocated_bytes=203, peak_reserved_bytes=204
    )
    writer.schedule(7, 301, 302, "slots", figures)
    tokens, emitted = (memoryview(array("h", [count])) for count in (3, 2))
    writer.forward(5, 7, 303, 304, 305, memory, b"", array("H", [0]).tobytes(), tokens, emitted)
    collected = Collected(tmp_path / "1-1.ring")
    collected.read()
    out = collected.decoder.take(1)
    (columns,) = out.steps
    step = {name: values[0] for name, values in columns.items() if name in schema.STEP.names}
    told = {name: value for name, value in figures._asdict().items() if name in schema.STEP.names}
    assert step == {
        **told, **memory._asdict(), "engine_id": 0, "step": 5, "ts": 303, "schedule_us": 302, "forward_us": 304,
        "num_predicted_tokens": 305, "num_stalled": 1, "num_tokens": 3, "num_prefill_tokens": 0, "num_decode_tokens": 3,
        "num_draft_tokens": 2, "num_accepted_tokens": 1, "reserved_output_blocks": figures.reservation,
        "new_token_ratio": -1,
    }  # fmt: skip
    assert columns["reason"][0] == wire.NOT_ADMITTED.index("slots")
    (rows,) = out.step_requests
    assert {name: values[0] for name, values in rows.items()} == {
        "engine_id": 0, "step": 5, "request": 0, "prefill": False, "num_tokens": 3, "num_computed_tokens": 13,
        "num_draft_tokens": 2, "num_accepted_tokens": 1, "num_blocks": 14,
    }  # fmt: skip
    known = collected.decoder.ledger.live[0]
    assert (known.num_prompt_tokens, known.max_tokens, known.num_cached_tokens) == (11, 12, 15)
    assert known.num_output_tokens == 16 + 2


def test_a_reader_that_was_overtaken_says_what_it_lost_and_reads_on(tmp_path: Path) -> None:
    path = tmp_path / "1-1.ring"
    engine = Scripted(path, random.Random(3), segment_size=1 << 18)
    collected = Collected(path)
    for _ in range(20):
        engine.run_step()
    collected.read()
    collected.flush()
    while engine.writer.ring.lap < 20:
        engine.run_step()
    collected.read()
    collected.flush()
    (lost,) = [json.loads(event[6]) for event in collected.events if event[3] == "lost"]
    found = {step for step, _ in collected.steps}
    gap = set(range(lost["first_step"], lost["last_step"] + 1))
    assert lost["first_step"] == 20
    assert len(gap) > 1000
    assert found | gap == set(range(engine.step))
    assert not found & gap
    assert sorted(collected.rows) == sorted(row for row in engine.account if row[0] in found)


def test_what_was_lost_before_anything_was_read_is_named_from_the_recordings_own_first_step(
    tmp_path: Path,
) -> None:
    """An engine that was attached to while it was running. Its collector started too late."""
    path = tmp_path / "1-1.ring"
    engine = Scripted(path, random.Random(4), segment_size=1 << 18)
    engine.step = 1000
    collected = Collected(path)
    while engine.writer.ring.lap < 12:
        engine.run_step()
    collected.read()
    collected.flush()
    collected.restart()
    engine.run_step()
    collected.read()
    collected.flush()
    (lost,) = [json.loads(event[6]) for event in collected.events if event[3] == "lost"]
    found = {step for step, _ in collected.steps}
    gap = set(range(lost["first_step"], lost["last_step"] + 1))
    assert lost["first_step"] == 1000
    assert found | gap == set(range(1000, engine.step))
    assert not found & gap


def test_half_a_frame_is_never_read(tmp_path: Path) -> None:
    page = ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, 1 << 18)
    writer = ring.RingWriter(page, 2, 1 << 18)
    reader = RingReader(str(tmp_path / "1-1.ring"))
    begun = writer.offset
    seen_before = []

    class Words:
        """The ring's words; before the commit word is stored, a reader looks, and the payload must be there."""

        def __setitem__(self, at: int, value: int) -> None:
            if value:
                seen_before.append((at * 8, page[begun + 8 : begun + 72], reader.read()))
            words[at] = value

    words, writer.words = writer.words, Words()  # type: ignore[assignment]
    writer.write(b"\x06" * 64)
    writer.words = words
    assert seen_before == [(begun, b"\x06" * 64, None)]
    chunk = reader.read()
    assert chunk is not None
    assert (len(chunk.payloads), chunk.lost) == (1, 0)
    assert reader.read() is None


def test_a_frame_larger_than_a_segment_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    page = ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, 1 << 18)
    writer = ring.RingWriter(page, 2, 1 << 18)
    with pytest.raises(ValueError, match="does not fit"):
        writer.write(bytes(1 << 19))
    assert RingReader(str(tmp_path / "1-1.ring")).read() is None


def test_a_ring_for_which_there_is_no_room_is_an_error_not_a_crash(tmp_path: Path, monkeypatch: Any) -> None:
    real, written = os.write, [0]

    def full(fd: int, data: bytes) -> int:
        written[0] += len(data)
        if written[0] > 1 << 18:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr("os.write", full)
    with pytest.raises(OSError, match="No space left"):
        ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, 1 << 18)
    assert list(tmp_path.iterdir()) == []


def test_signed_items_of_every_size_are_decoded() -> None:
    for code, kind in enumerate("bhiq"):
        items = memoryview(array(kind, [1, -1, 3]))
        assert items.itemsize == wire.ITEM_SIZES[code]
        assert np.frombuffer(items, f"<i{items.itemsize}").tolist() == [1, -1, 3]
    assert mmap.PAGESIZE <= ring.PAGE


def test_what_a_request_made_before_it_was_preempted_is_counted_once(tmp_path: Path) -> None:
    """Its row says how much that is as it comes back, all in one reading."""
    page = ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, 1 << 18)
    writer = Writer(page, 2, 1 << 18, dict, list)
    writer.boundary()
    writer.request("a", 1, 3, 99)

    def forward(step: int, tokens: int, *, prefill: bool) -> None:
        writer.schedule(step, step, 1, "", wire.CallFigures())
        chunk = array("H", [wire.LAST_CHUNK] if prefill else []).tobytes()
        ran, made = (memoryview(array("h", [count])) for count in (tokens, 1))
        writer.forward(step, step, step, 1, -1, wire.AllocatorFigures(), chunk, b"", ran, made)

    writer.batch((), [(0, KeyframeRow("a", 3, 99, 0, 1, 0, 0))])
    forward(0, 3, prefill=True)
    forward(1, 1, prefill=False)
    writer.event("preempted", "a", "blocks")
    writer.batch((0,), [(0, KeyframeRow("a", 3, 99, 0, 1, 0, 2))])
    forward(2, 5, prefill=True)
    collected = Collected(tmp_path / "1-1.ring")
    collected.read()
    collected.flush()
    assert collected.decoder.ledger.live[0].num_output_tokens == 3
