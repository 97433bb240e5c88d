"""The events of a recording in the order in which its engine met them, as the model takes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.column_values import MISSING, Columns
from fdtrace.replayer.model.events import (
    Aborted,
    Arrived,
    Discarded,
    Freed,
    Joined,
    Left,
    Notification,
    OutputCached,
    Recycled,
    Resumed,
)
from fdtrace.replayer.model.found_events import (
    CachedBlock,
    CacheLeaf,
    LeavingAtStart,
    Preallocated,
    PrefixCacheAtStart,
    ReserveAtStart,
    SlotLost,
)
from fdtrace.replayer.replay.ordered_replay import RecordedCall, RecordedEvent, rescheduled
from fdtrace.replayer.workload.workload import WorkRequest

PLACES: Mapping[str, Literal["running", "requeued", "preempted", "aborting", "preallocated"]] = {
    "running": "running",
    "requeued": "requeued",
    "preempted": "preempted",
    "aborting": "aborting",
    "preallocated": "preallocated",
}


class _ByCall:
    """Rows by call, read in the order of the calls. Only one part of them at a time is turned into objects."""

    PART = 50_000

    def __init__(self, columns: Columns, names: Sequence[str]) -> None:
        self._calls, self._columns = columns["call"], [columns[name] for name in names]
        self._rows: list[tuple[Any, ...]] = []
        self._numbers: list[int] = []
        self._at = self._next = 0

    def of(self, call: int) -> Iterator[tuple[Any, ...]]:
        """The rows of a call; rows of earlier calls are skipped."""
        while True:
            if self._at == len(self._rows):
                if self._next >= len(self._calls):
                    return
                part = slice(self._next, self._next + self.PART)
                self._rows = list(zip(*(column[part].tolist() for column in self._columns), strict=True))
                self._numbers, self._at, self._next = self._calls[part].tolist(), 0, part.stop
            number = self._numbers[self._at]
            if number > call:
                return
            self._at += 1
            if number == call:
                yield self._rows[self._at - 1]


class RecordedOrder:
    """Iterates over the events of a recording; `requests` are its requests by their numbers.

    The model learns outputs from what each call counted: it does not get `accepts`.
    """

    def __init__(self, order: CallOrder, requests: Mapping[int, WorkRequest]) -> None:
        self.order, self.requests = order, requests
        self.num_calls = int(order.calls["num_calls"].sum())
        self._did = _ByCall(order.did, _DID)
        self._known = _ByCall(order.known, ("request", "num_total_tokens"))
        self._changed = _ByCall(order.changes, ("kind", "request", "detail"))

    def __iter__(self) -> Iterator[RecordedEvent]:
        names = ("call", "num_calls", "num_running", "num_waiting", "num_free_blocks")
        for first, count, running, waiting, free in zip(
            *(self.order.calls[name].tolist() for name in names), strict=True
        ):
            for call in range(first, first + count):
                yield from self._changes(call)
                yield self._call(call, running, waiting, free)

    def _changes(self, call: int) -> Iterator[Notification]:
        for kind, number, detail in self._changed.of(call):
            yield from self._change(kind, self.requests.get(number), json.loads(detail))

    def _change(
        self, kind: str, request: WorkRequest | None, detail: dict[str, Any]
    ) -> Iterator[Notification]:
        if request is None:
            if kind == "found":
                yield from _without_request(detail)
            elif kind == "freed" and "number" in detail:
                yield Freed(_leaving_name(detail))
            return
        name, tokens = request.request_id, detail.get("num_total_tokens", MISSING)
        if kind == "queued":
            yield _arrived(request)
        elif kind == "found":
            yield _resumed(request, detail)
        elif kind == "requeued":
            yield from rescheduled(name, tokens)
        elif kind == "preallocated":
            yield _arrived(request)
            yield Preallocated(name)
        elif kind == "output_cached":
            yield OutputCached(name, tokens)
        else:
            yield _CHANGES[kind](name)

    def _call(self, call: int, running: int, waiting: int, free: int) -> RecordedCall:
        chunks: list[tuple[str, int, int]] = []
        lists: dict[str, list[str]] = {name: [] for name in _LISTED}
        known: dict[str, int] = {}
        needed: list[int] = []
        for number, total in self._known.of(call):
            if number in self.requests:
                known[self.requests[number].request_id] = total
        for number, did, start, tokens, total, blocks in self._did.of(call):
            request = self.requests.get(number)
            name = "" if request is None else request.request_id
            if did == "chunk":
                chunks.append((name, start, start + tokens))
            elif did in lists:
                lists[did].append(name)
            if total != MISSING:
                known[name] = total
            if blocks != MISSING:
                needed.append(blocks)
        return RecordedCall(
            call,
            tuple(chunks),
            tuple(lists["extended"]),
            tuple(lists["preempted"]),
            tuple(lists["aborted"]),
            running,
            waiting,
            free,
            known,
            frozenset(lists["skipped"]),
            frozenset(lists["failed"]),
            tuple(needed),
        )


def initial_events(order: CallOrder, requests: Mapping[int, WorkRequest]) -> Iterator[Notification]:
    """The state that the first recorded call found, as events."""
    recorded_order, changes = RecordedOrder(order, requests), order.changes
    for index in np.flatnonzero(changes["kind"] == "found").tolist():
        number, detail = int(changes["request"][index]), json.loads(changes["detail"][index])
        yield from recorded_order._change("found", requests.get(number), detail)


_DID = ("request", "did", "num_computed_tokens", "num_tokens", "num_total_tokens", "num_needed_blocks")
_LISTED = ("extended", "preempted", "aborted", "skipped", "failed")
_CHANGES: Mapping[str, Callable[[str], Notification]] = {
    "abort_wanted": Aborted,
    "left": Left,
    "freed": Freed,
    "recycled": Recycled,
    "joined": Joined,
    "discarded": Discarded,
}


def _without_request(detail: dict[str, Any]) -> Iterator[Notification]:
    """What the first call found that concerns no request of the recording."""
    try:
        if detail["place"] == "cached":
            blocks = tuple(CachedBlock(*block) for block in detail["blocks"])
            yield PrefixCacheAtStart(blocks, int(detail["num_free_blocks"]))
        elif detail["place"] == "leaving":
            yield LeavingAtStart(_leaving_name(detail), int(detail["num_blocks"]), _leaf(detail))
        elif detail["place"] in ("aborting", "preempted"):
            yield SlotLost()
        elif "value" in detail:
            yield ReserveAtStart(detail["value"], relaxed=detail["place"] == "relaxed reserve")
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(
            f"what this trace says about the begin of its recording cannot be read: {error!r}"
        ) from error


def _leaving_name(detail: dict[str, Any]) -> str:
    """The name of a request that had left before the recording; the recording has only its number."""
    return f"left before the recording, {detail['number']}"


def _arrived(request: WorkRequest) -> Arrived:
    """Its arrival without its acceptances: its outputs are known from what calls counted."""
    return request.arrived()._replace(accepts=None, num_output_tokens=None)


def _resumed(request: WorkRequest, detail: dict[str, Any]) -> Resumed:
    """The state in which the first call found the request."""
    num_output = detail["num_total_tokens"] - request.num_prompt_tokens
    computed = detail.get("num_computed_tokens", 0)
    return replace(
        Resumed(_arrived(request), computed, detail.get("num_blocks", 0), max(0, num_output)),
        num_prefill_tokens=detail.get("num_prefill_tokens"),
        place=PLACES[detail["place"]],
        leaf=_leaf(detail),
    )


def _leaf(detail: dict[str, Any]) -> CacheLeaf | None:
    if "cache_block" not in detail:
        return None
    return CacheLeaf(detail["cache_block"], detail["num_cached_tokens"], detail["num_cached_blocks"])
