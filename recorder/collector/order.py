"""The order in which an engine met its events: frames DECIDED and QUEUE in, rows of `call_request` out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire, wire_order
from fdtrace.recorder.collector.columns import Columns
from fdtrace.recorder.collector.ledger import Request
from fdtrace.recorder.collector.undated import Undated
from fdtrace.recorder.recording import MISSING

DID = ("", "chunk", "extended", "preempted", "aborted", "skipped", "failed", "refused")
"""What a call did with a request, by the number that stands for it in columns."""

COLUMNS = (
    "call",
    "request",
    "did_code",
    "num_computed_tokens",
    "num_tokens",
    "num_total_tokens",
    "num_needed_blocks",
)

Rows = list[tuple[int, ...]]


class OrderDecoder:
    """Decodes what the scheduling process of one engine wrote. Requests are numbered as in the trace."""

    def __init__(self) -> None:
        self.events = Undated()
        """Of the scheduling process, until the steps that they belong to are known."""
        self.knows_running = False
        self.running: dict[int, int] = {}
        """The running queue: the tokens computed of each of its requests, as told last."""
        self.told: dict[int, int] = {}
        """The tokens of each that a call last counted."""
        self.needs: dict[int, int] = {}
        """Tokens that the prefill of a preempted request covers."""
        self.started: set[int] = set()
        self.rows: Rows = []
        self._known: list[NDArray[np.int64]] = []

    def lose(self) -> None:
        """Frames were lost: the running queue is not known until it is told whole."""
        self.knows_running = False

    def take_in(self, data: bytes, at: int, numbers: dict[int, int], live: dict[int, Request]) -> None:
        """A frame; `numbers`: the trace's numbers of this ring's requests."""
        if data[at] == wire.DECIDED:
            self._decided(data, at, numbers, live)
            return
        head = wire_order.QUEUE_HEAD.read(data, at)
        kind, number = wire.EVENTS[head.event], numbers.get(head.request, MISSING)
        detail = self._queue(kind, head, number, data, at + wire_order.QUEUE_HEAD.size)
        text = None if detail is None else json.dumps(detail)
        self.events.add(head.call, kind, number, head.ts, "", text)

    def _queue(
        self, kind: str, head: wire_order.QueueHead, number: int, data: bytes, at: int
    ) -> dict[str, Any] | None:
        if kind == "found":
            return self._found(head, number, data, at)
        if kind == "requeued":
            self.needs[number] = head.num_total_tokens
            self.started.discard(number)
        elif kind in ("left", "recycled"):
            self._forget(number)
        return {"num_total_tokens": head.num_total_tokens} if head.num_total_tokens >= 0 else None

    def _found(self, head: wire_order.QueueHead, number: int, data: bytes, at: int) -> dict[str, Any]:
        """What the first call found of a request, or is kept for the running ones."""
        place, *more = np.frombuffer(data, "<u4", head.num_more, at).tolist()
        if (
            head.request != wire_order.NOBODY
        ):  # one that does not run is prefilled anew, with all that it made
            self.needs[number] = more[1] if more else head.num_total_tokens
        told: dict[str, Any] = {"place": wire_order.PLACES[place]}
        if head.request == wire_order.NOBODY:
            return told | ({"value": head.num_total_tokens / 1e9} if head.num_total_tokens >= 0 else {})
        return (
            told
            | {"num_total_tokens": head.num_total_tokens}
            | dict(zip(wire_order.FOUND[1:], more, strict=False))
        )

    def _forget(self, number: int) -> None:
        self.started.discard(number)
        self.needs.pop(number, None)
        self.running.pop(number, None)
        self.told.pop(number, None)

    def _decided(self, data: bytes, at: int, numbers: dict[int, int], live: dict[int, Request]) -> None:
        head = wire_order.DECIDED_HEAD.read(data, at)
        begin = at + wire_order.DECIDED_HEAD.size
        num_tasks = 3 * head.num_chunks + head.num_extended + 2 * head.num_preempted + head.num_aborted
        num_tasks += head.num_skipped + head.num_failed + head.num_started + head.num_needed
        words = np.frombuffer(data, "<u4", num_tasks, begin)
        begin += 4 * num_tasks
        listed = [numbers.get(word, MISSING) for word in words.tolist()]
        self._tasks(head, words.tolist(), listed, numbers)
        if head.flags & wire_order.RUNNING:
            running = np.frombuffer(data, "<u4", head.num_running, begin).tolist()
            begin += 4 * head.num_running
            self.running = dict.fromkeys((numbers.get(word, MISSING) for word in running), 0)
            self.knows_running = len(self.running) == head.num_running
        self.started.update(
            listed[len(listed) - head.num_needed - head.num_started : len(listed) - head.num_needed]
        )
        if not self.knows_running or len(self.running) != head.num_running:
            self.knows_running = False
            return
        computed = np.frombuffer(data, "<u4", head.num_running, begin).tolist()
        self.running = dict(zip(self.running, computed, strict=True))
        self._count(head.call, live)

    def _count(self, call: int, live: dict[int, Request]) -> None:
        """Tell of each decode the tokens that the call counted, where they are not those of the call before."""
        needs, started, told, found = self.needs, self.started, self.told, []
        for number, computed in self.running.items():
            if told.get(number) == computed + 1:
                continue
            need = needs.get(number)
            if need is None:
                need = needs[number] = live[number].num_prompt_tokens if number in live else MISSING
            total = computed + 1
            if 0 <= need <= computed and (computed > need or number in started) and told.get(number) != total:
                told[number] = total
                found.append((call, number, 0, MISSING, MISSING, total, MISSING))
        if found:
            self._known.append(np.array(found, np.int64).T)

    def _tasks(
        self, head: wire_order.DecidedHead, words: list[int], listed: list[int], numbers: dict[int, int]
    ) -> None:
        """The rows of what the call did, in the order of `DecidedHead`."""
        call, add = head.call, self.rows.append
        needed = words[len(words) - head.num_needed :] if head.num_needed else []
        place = 0
        for i in range(head.num_chunks):
            _, start, end = words[place : place + 3]
            asked = needed[i] if i < len(needed) else MISSING
            add((call, listed[place], 1, start, end - start, MISSING, asked))
            self.running.setdefault(listed[place], end)
            place += 3
        for _ in range(head.num_extended):
            add((call, listed[place], 2, MISSING, MISSING, MISSING, MISSING))
            place += 1
        for _ in range(head.num_preempted):
            add((call, listed[place], 3, MISSING, MISSING, words[place + 1], MISSING))
            self._forget(listed[place])
            place += 2
        for did, count in ((4, head.num_aborted), (5, head.num_skipped), (6, head.num_failed)):
            for number in listed[place : place + count]:
                add((call, number, did, MISSING, MISSING, MISSING, MISSING))
                if did == 4:
                    self.running.pop(number, None)
            place += count
        if len(needed) > head.num_chunks:
            refused = numbers.get(head.refused, MISSING)
            add((call, refused, 7, MISSING, MISSING, MISSING, needed[-1]))

    def take(self, engine_id: int) -> list[Columns]:
        """The columns of `call_request` since the last call, in the order of the calls; none: no rows."""
        tasks = np.array(self.rows, np.int64).reshape(-1, len(COLUMNS)).T
        found = np.concatenate([tasks, *self._known], axis=1)
        self.rows, self._known = [], []
        if not found.shape[1]:
            return []
        found = found[:, np.argsort(found[0], kind="stable")]
        columns = dict(zip(COLUMNS, found, strict=True))
        return [columns | {"engine_id": np.full(found.shape[1], engine_id, np.int64)}]

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "events": self.events.waiting,
            "knows_running": self.knows_running,
            "running": list(self.running.items()),
            "told": list(self.told.items()),
            "needs": list(self.needs.items()),
            "started": sorted(self.started),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.events.waiting, self.knows_running = state["events"], state["knows_running"]
        self.running, self.told = dict(state["running"]), dict(state["told"])
        self.needs = dict(state["needs"])
        self.started = set(state["started"])
