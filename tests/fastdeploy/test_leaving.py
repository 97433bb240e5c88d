"""Requests that are between the two sections of `finish_requests` when a recording begins."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from fdtrace.recorder.agent import wire, wire_order
from fdtrace.recorder.agent.fastdeploy_order import FastDeployOrder
from fdtrace.recorder.collector import order_frames
from fdtrace.recorder.collector.order_decoder import OrderDecoder
from fdtrace.recorder.trace.column_values import MISSING
from tests.fastdeploy.test_order import Manager, Ring, order, ring

__all__ = ["order", "ring"]


class FinishingManager(Manager):
    """Ends requests as FastDeploy does: in two sections of its lock, and waits between them."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.go_on = threading.Event(), threading.Event()

    def finish_requests(self, request_ids: Any) -> None:
        request_ids = {request_ids}
        need_postprocess_reqs: list[Any] = []
        with self.lock:
            for name in request_ids:
                need_postprocess_reqs.append(self.requests.pop(name))
        self.left.set()
        assert self.go_on.wait(60)
        with self.lock:
            for request in need_postprocess_reqs:
                request.block_tables = []


def found_and_freed(ring: Ring) -> list[tuple[int, str, dict[str, Any]]]:
    """Call, kind and detail of the frames about requests that are in no queue."""
    decoder = OrderDecoder()
    for data in ring.frames:
        if data[0] == wire.QUEUE:
            frame = order_frames.queue(data, 0)
            if frame.head.request == wire_order.NOBODY:
                decoder.take_in(frame, {}, {})
    rows = [(call, kind, number, detail) for call, kind, number, _, _, detail in decoder.events.waiting]
    assert all(number == MISSING for *_, number, _ in rows)
    return [(call, kind, json.loads(detail)) for call, kind, _, detail in rows]


@pytest.mark.parametrize("watched_before", [False, True])
def test_its_blocks_are_found_and_it_is_freed(
    order: FastDeployOrder, ring: Ring, watched_before: bool
) -> None:
    manager = FinishingManager()
    manager.requests["gone"] = SimpleNamespace(request_id="gone", block_tables=[1, 2, 3])
    if watched_before:
        order.watch(manager)
    finishing = threading.Thread(target=manager.finish_requests, args=("gone",))
    finishing.start()
    assert manager.left.wait(60)
    order.watch(manager)
    manager.schedule()
    order.next_call = 7
    manager.go_on.set()
    finishing.join(60)
    reserve, found, freed = found_and_freed(ring)
    assert reserve[2]["place"] == "reserve"
    assert found[:2] == (0, "found")
    assert (found[2]["place"], found[2]["number"], found[2]["num_blocks"]) == ("leaving", 0, 3)
    assert freed == (7, "freed", {"number": 0})
    assert not order.leaving_requests


def test_one_whose_blocks_were_given_back_is_not_found(order: FastDeployOrder, ring: Ring) -> None:
    manager = FinishingManager()
    manager.requests["gone"] = SimpleNamespace(request_id="gone", block_tables=[])
    finishing = threading.Thread(target=manager.finish_requests, args=("gone",))
    finishing.start()
    assert manager.left.wait(60)
    order.watch(manager)
    manager.schedule()
    manager.go_on.set()
    finishing.join(60)
    assert [detail["place"] for _, _, detail in found_and_freed(ring)] == ["reserve"]
