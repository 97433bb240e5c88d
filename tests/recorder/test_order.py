"""The frames that tell the order of an engine's calls: written by the agent, read by the collector."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace
from typing import Any

import pytest

from fdtrace.recorder.agent import wire_order
from fdtrace.recorder.agent.order import CallDecision, OrderWriter
from fdtrace.recorder.collector.frames import DECODERS
from fdtrace.recorder.collector.ledger import OpenRequest
from fdtrace.recorder.collector.order_decoder import DID, OrderDecoder
from fdtrace.recorder.collector.order_frames import DecidedFrame, QueueFrame
from fdtrace.recorder.collector.prompt_hash_salt import salted

NUMBERS = {"a": 0, "b": 1, "c": 2}
TRACE_NUMBERS = {0: 10, 1: 11, 2: 12}
LIVE = {number: OpenRequest("", num_prompt_tokens=100) for number in TRACE_NUMBERS.values()}


class Frames:
    """A writer of frames, and a decoder that reads what it wrote."""

    def __init__(self) -> None:
        self.numbers, self.ring = NUMBERS, SimpleNamespace(lap=0)
        self.payloads: list[bytes] = []
        self.writer = OrderWriter(self)
        self.decoder = OrderDecoder()

    def put(self, payload: bytes, *, ends_idle: bool) -> None:
        assert not ends_idle
        self.payloads.append(payload)

    def decided(self, call: int, running: dict[str, int] | None, computed: list[int], **did: Any) -> None:
        nothing: dict[str, Any] = {
            "chunks": [], "extended": [], "preempted": [], "aborted": [], "skipped": [], "failed": [], "started": [],
            "needed_blocks": [], "refused": None,
        }  # fmt: skip
        told = CallDecision(call=call, ts=1000 + call, computed=list(computed), **(nothing | did))
        self.writer.decided(told, None if running is None else list(running))

    def rows(self) -> list[tuple[int, int, str, dict[str, int]]]:
        """What the decoder made of it: call, request, what was done, and the figures that are known."""
        for payload in self.payloads:
            frame = DECODERS[payload[0]](payload, 0)
            assert isinstance(frame, (DecidedFrame, QueueFrame))
            self.decoder.take_in(frame, TRACE_NUMBERS, LIVE)
        self.payloads = []
        found = []
        for columns in self.decoder.take(7):
            assert set(columns["engine_id"].tolist()) == {7}
            names = ("num_computed_tokens", "num_tokens", "num_total_tokens", "num_needed_blocks")
            for at in range(len(columns["call"])):
                figures = {name: int(columns[name][at]) for name in names if columns[name][at] >= 0}
                did = DID[columns["did_code"][at]]
                found.append((int(columns["call"][at]), int(columns["request"][at]), did, figures))
        return found

    def details(self) -> list[Any]:
        return [json.loads(event[5]) if event[5] else None for event in self.decoder.events.waiting]


@pytest.fixture
def frames() -> Frames:
    return Frames()


def test_what_a_call_did_comes_back_kind_by_kind(frames: Frames) -> None:
    frames.decided(
        3, {"a": 0}, [0], chunks=[("a", 64, 100), ("b", 0, 50)], extended=["c"], preempted=[("c", 130)],
        aborted=["b"], skipped=["c"], failed=["b"], needed_blocks=[5, 9, 20], refused="c",
    )  # fmt: skip
    assert frames.rows() == [
        (3, 10, "chunk", {"num_computed_tokens": 64, "num_tokens": 36, "num_needed_blocks": 5}),
        (3, 11, "chunk", {"num_computed_tokens": 0, "num_tokens": 50, "num_needed_blocks": 9}),
        (3, 12, "extended", {}),
        (3, 12, "preempted", {"num_total_tokens": 130}),
        (3, 11, "aborted", {}),
        (3, 12, "skipped", {}),
        (3, 11, "failed", {}),
        (3, 12, "refused", {"num_needed_blocks": 20}),
    ]


def test_a_decode_is_told_when_a_call_counts_other_tokens_of_it(frames: Frames) -> None:
    frames.decided(0, {"a": 0}, [100], chunks=[("a", 0, 100)])
    frames.decided(1, None, [100])
    frames.decided(2, None, [100], started=["a"])
    frames.decided(3, None, [103])
    frames.decided(4, None, [103])
    told = [(call, figures["num_total_tokens"]) for call, _, did, figures in frames.rows() if not did]
    assert told == [(2, 101), (3, 104)]


def checkpoint(frames: Frames, call: int, num_frames: int) -> None:
    """A checkpoint of a reserve and a running request; its last frame says that it has so many."""
    place = wire_order.PLACES.index
    frames.writer.event(call, "checkpoint", None, 16_000_000_000, (place("reserve"),))
    frames.writer.event(call, "checkpoint", "a", 104, (place("running"), 100, 100, 2))
    frames.writer.event(call, "checkpoint", None, num_frames, (place(wire_order.WHOLE),))


@pytest.mark.parametrize("loss", ["", "before", "within"])
def test_after_a_checkpoint_tokens_are_told_again_if_all_of_it_came(frames: Frames, loss: str) -> None:
    frames.decided(0, {"a": 0}, [100], chunks=[("a", 0, 100)])
    frames.decided(1, None, [103], started=["a"])
    frames.rows()
    checkpoint(frames, 2, num_frames=2 if loss != "before" else 3)
    if loss == "within":
        last = frames.payloads.pop()
        frames.rows()
        frames.decoder.lose()
        frames.payloads.append(last)
    frames.rows()
    frames.decided(2, {"a": 0}, [103])
    told = [(call, figures["num_total_tokens"]) for call, _, did, figures in frames.rows() if not did]
    complete = frames.decoder.checkpoints.take()
    if loss:
        assert (told, complete) == ([], [])
        return
    assert told == [(2, 104)]
    (one,) = complete
    assert (one.call, one.next_request) == (2, 13)
    rows = [(row[0], row[3], row[4], json.loads(row[6])["place"], row[7]) for row in one.events(5)]
    assert rows == [(5, "checkpoint", None, "reserve", 2), (5, "checkpoint", 10, "running", 2)]
    assert frames.decoder.events.waiting == []


@pytest.mark.parametrize("before", [65_530, 65_533, 70_000], ids=["narrow", "becomes too long", "wide"])
def test_computed_tokens_of_any_context_come_back(frames: Frames, before: int) -> None:
    """Two bytes each, or four if one of them needs more."""
    frames.decided(0, {"a": 0, "b": 0}, [before, 7], chunks=[("a", 0, before), ("b", 0, 7)])
    frames.decided(1, None, [before + 3, 7])
    assert (1, 10, "", {"num_total_tokens": before + 4}) in frames.rows()


def test_the_running_queue_follows_from_what_was_told(frames: Frames) -> None:
    frames.decided(0, {"a": 0, "b": 0}, [100, 100], chunks=[("a", 0, 100), ("b", 0, 100)])
    frames.writer.event(1, "left", "a")
    frames.decided(1, None, [120, 100], chunks=[("c", 0, 100)])
    frames.decided(2, None, [100], preempted=[("b", 125)])
    frames.decided(3, None, [140])
    told = [row[:2] + tuple(row[3].values()) for row in frames.rows() if not row[2]]
    assert told == [(1, 11, 121), (3, 12, 141)]


@pytest.mark.parametrize("found", [True, False])
def test_a_preempted_request_is_prefilled_with_what_it_had_made(frames: Frames, found: bool) -> None:
    """Its prompt has 100 tokens: those computed past it are no sign of an output since it came back."""
    if found:
        frames.writer.write_found("requeued", "a", 130)
    else:
        frames.decided(0, {"a": 0}, [100], chunks=[("a", 0, 100)])
        frames.decided(1, None, [129])
        frames.decided(2, None, [], preempted=[("a", 130)])
        frames.writer.event(3, "requeued", "a", 130)
    frames.rows()
    frames.decided(3, {"a": 0}, [130], chunks=[("a", 0, 130)])
    frames.decided(4, None, [130])
    frames.decided(5, None, [131])
    assert [row[0] for row in frames.rows() if not row[2]] == [5]


def test_frames_that_were_lost_leave_the_running_queue_unknown_until_it_is_told(frames: Frames) -> None:
    frames.decided(0, {"a": 0}, [110])
    frames.rows()
    frames.decided(1, None, [110, 0], chunks=[("b", 0, 50)])
    frames.payloads.clear()
    frames.decoder.lose()
    frames.decided(2, None, [120, 50])
    assert frames.rows() == []
    frames.ring.lap = 1
    assert frames.writer.wants_whole
    frames.decided(3, {"a": 0, "b": 0}, [130, 50])
    assert frames.rows() == [(3, 10, "", {"num_total_tokens": 131})]


def test_what_was_found_is_told_in_words(frames: Frames) -> None:
    frames.writer.write_found("running", "a", 130, 100, 100, 3)
    frames.writer.write_found("relaxed reserve", None, 14_500_000_000)
    frames.writer.event(4, "queued", "b")
    frames.writer.event(4, "queued", "nobody knows it")
    frames.rows()
    assert frames.details() == [
        {
            "place": "running", "num_total_tokens": 130, "num_computed_tokens": 100, "num_prefill_tokens": 100,
            "num_blocks": 3,
        },
        {"place": "relaxed reserve", "value": 14.5},
        None,
    ]  # fmt: skip


def test_the_prefix_cache_is_told_block_by_block_with_salted_hashes(frames: Frames) -> None:
    frames.decoder = OrderDecoder(b"salt")
    nobody, on_device, child = wire_order.NOBODY, wire_order.ON_DEVICE, wire_order.CHILD
    first, second = (nobody, 7, 8, 1, 2, on_device | child, nobody), (0, 9, 10, 0, 1, on_device, 3)
    frames.writer.write_found("cached", None, 5, *first, *second)
    frames.writer.write_found("cache left out", None, 20_000)
    frames.writer.write_found("running", "a", 130, 100, 100, 3, nobody, 0, 0)
    frames.rows()
    one, other = salted(struct.pack("<IIII", 7, 8, 9, 10), b"salt")
    assert one != 7 + (8 << 32)
    state = {"num_total_tokens": 130, "num_computed_tokens": 100, "num_prefill_tokens": 100, "num_blocks": 3}
    in_cache = {"cache_block": None, "num_cached_tokens": 0, "num_cached_blocks": 0}
    assert frames.details() == [
        {
            "place": "cached", "num_free_blocks": 5,
            "blocks": [[None, one, 1, 2, True, True, None], [0, other, 0, 1, True, False, 3]],
        },
        {"place": "cache left out", "num_blocks": 20_000},
        {"place": "running", **state, **in_cache},
    ]  # fmt: skip


def test_a_collectors_successor_decodes_on(frames: Frames) -> None:
    frames.decided(0, {"a": 0, "b": 0}, [100, 64], chunks=[("a", 0, 100), ("b", 0, 64)], started=["a"])
    frames.rows()
    after = OrderDecoder()
    after.restore(json.loads(json.dumps(frames.decoder.state())))
    frames.decoder = after
    frames.decided(1, None, [100, 64])
    frames.decided(2, None, [101, 100], chunks=[("b", 64, 100)])
    assert [row[:3] for row in frames.rows()] == [(2, 11, "chunk"), (2, 10, "")]
