"""The order of an engine's events: reads frames DECIDED and QUEUE, gives rows of `call_request`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.agent import wire_order
from fdtrace.recorder.collector.engine import Decoded
from fdtrace.recorder.collector.events_without_step import UndatedEvents
from fdtrace.recorder.collector.found_state import Checkpoints, found_detail
from fdtrace.recorder.collector.ledger import OpenRequest
from fdtrace.recorder.collector.order_frames import DecidedFrame, QueueFrame
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

DID = ("", "chunk", "extended", "preempted", "aborted", "skipped", "failed", "refused")
"""What a call did with a request. Columns hold the index into this tuple."""

COLUMNS = (
    "call",
    "request",
    "did_code",
    "num_computed_tokens",
    "num_tokens",
    "num_total_tokens",
    "num_needed_blocks",
)

OrderRows = list[tuple[int, ...]]


class OrderDecoder:
    """Decodes what the scheduling process of one engine wrote. Requests are numbered as in the trace."""

    def __init__(self, salt: bytes = b"") -> None:
        self.salt = salt
        self.events = UndatedEvents()
        """Events of the scheduling process whose steps are not known yet."""
        self.checkpoints = Checkpoints(salt)
        self.knows_running = False
        self.running: dict[int, int] = {}
        """The running queue: request -> its computed tokens, as the last frame says."""
        self.counted_tokens: dict[int, int] = {}
        """Request -> the tokens that a call last counted."""
        self.prefill_tokens: dict[int, int] = {}
        """Request -> the tokens that its prefill covers, output from before a preemption included."""
        self.started: set[int] = set()
        self.rows: OrderRows = []
        self._count_rows: list[NDArray[np.int64]] = []

    def lose(self) -> None:
        """Frames were lost. The running queue is not known until a frame names all of it."""
        self.knows_running = False
        self.checkpoints.lose()

    def take_in(
        self, frame: DecidedFrame | QueueFrame, numbers: dict[int, int], live: dict[int, OpenRequest]
    ) -> None:
        """Take in a frame. `numbers`: this ring's numbers of requests -> the trace's."""
        if isinstance(frame, QueueFrame) and frame.kind == "checkpoint":
            if self.checkpoints.take_in(frame, numbers):
                # A trace may begin with this call: its tokens are rows, also those that follow from the call before.
                self.counted_tokens.clear()
        elif isinstance(frame, QueueFrame):
            self._changed(frame, numbers)
        else:
            self._decided(frame, numbers, live)

    def _changed(self, frame: QueueFrame, numbers: dict[int, int]) -> None:
        head = frame.head
        number = numbers.get(head.request, MISSING)
        detail = self._change(frame, number)
        text = None if detail is None else json.dumps(detail)
        self.events.add(head.call, frame.kind, number, head.ts, "", text)

    def _change(self, frame: QueueFrame, number: int) -> dict[str, Any] | None:
        num_total_tokens = frame.head.num_total_tokens
        if frame.kind == "found":
            if frame.head.request != wire_order.NOBODY:
                # A request that does not run is prefilled again, with all its output.
                self.prefill_tokens[number] = frame.more[2] if frame.more[1:] else num_total_tokens
            return found_detail(frame, self.salt)
        if frame.kind == "freed" and frame.head.request == wire_order.NOBODY:
            return {"number": num_total_tokens}
        if frame.kind == "requeued":
            self.prefill_tokens[number] = num_total_tokens
            self.started.discard(number)
        elif frame.kind in ("left", "recycled"):
            self._forget(number)
        return {"num_total_tokens": num_total_tokens} if num_total_tokens >= 0 else None

    def _forget(self, number: int) -> None:
        self.started.discard(number)
        self.prefill_tokens.pop(number, None)
        self.running.pop(number, None)
        self.counted_tokens.pop(number, None)

    def _decided(self, frame: DecidedFrame, numbers: dict[int, int], live: dict[int, OpenRequest]) -> None:
        head = frame.head
        self._tasks(frame, numbers)
        if frame.running is not None:
            self.running = dict.fromkeys((numbers.get(local, MISSING) for local in frame.running), 0)
            self.knows_running = len(self.running) == head.num_running
        self.started.update(numbers.get(local, MISSING) for local in frame.started)
        if not self.knows_running or len(self.running) != head.num_running:
            self.knows_running = False
            return
        self.running = dict(zip(self.running, frame.computed, strict=True))
        self._count(head.call, live)

    def _count(self, call: int, live: dict[int, OpenRequest]) -> None:
        """Add a row for each decode whose tokens the call counted, unless they follow from the call before."""
        needs, started, counted, rows = self.prefill_tokens, self.started, self.counted_tokens, []
        for number, computed in self.running.items():
            if counted.get(number) == computed + 1:
                continue
            need = needs.get(number)
            if need is None:
                need = needs[number] = live[number].num_prompt_tokens if number in live else MISSING
            total = computed + 1
            if (
                0 <= need <= computed
                and (computed > need or number in started)
                and counted.get(number) != total
            ):
                counted[number] = total
                rows.append((call, number, 0, MISSING, MISSING, total, MISSING))
        if rows:
            self._count_rows.append(np.array(rows, np.int64).T)

    def _tasks(self, frame: DecidedFrame, numbers: dict[int, int]) -> None:
        """Add the rows of what the call did, in the order of `DecidedFrame`."""
        call, add, needed = frame.head.call, self.rows.append, frame.needed
        for i, (local, start, end) in enumerate(frame.chunks):
            number, required = numbers.get(local, MISSING), needed[i] if i < len(needed) else MISSING
            add((call, number, 1, start, end - start, MISSING, required))
            self.running.setdefault(number, end)
        for local in frame.extended:
            add((call, numbers.get(local, MISSING), 2, MISSING, MISSING, MISSING, MISSING))
        for local, total in frame.preempted:
            number = numbers.get(local, MISSING)
            add((call, number, 3, MISSING, MISSING, total, MISSING))
            self._forget(number)
        for did, locals_ in ((4, frame.aborted), (5, frame.skipped), (6, frame.failed)):
            for number in (numbers.get(local, MISSING) for local in locals_):
                add((call, number, did, MISSING, MISSING, MISSING, MISSING))
                if did == 4:
                    self.running.pop(number, None)
        if len(needed) > len(frame.chunks):
            refused = numbers.get(frame.head.refused, MISSING)
            add((call, refused, 7, MISSING, MISSING, MISSING, needed[-1]))

    def add_to(self, decoded: Decoded, engine_id: int) -> None:
        """Add what has been decoded since this was called last; `decoded` has the dated events already."""
        decoded.call_requests = self.take(engine_id)
        decoded.undated_events = tuple(self.events.waiting)
        decoded.checkpoints = self.checkpoints.take()
        decoded.events += [row for one in decoded.checkpoints for row in one.events(engine_id)]

    def take(self, engine_id: int) -> list[ColumnArrays]:
        """The columns of `call_request` since this was called last, in the order of the calls. Empty: no rows."""
        tasks = np.array(self.rows, np.int64).reshape(-1, len(COLUMNS)).T
        rows = np.concatenate([tasks, *self._count_rows], axis=1)
        self.rows, self._count_rows = [], []
        if not rows.shape[1]:
            return []
        rows = rows[:, np.argsort(rows[0], kind="stable")]
        columns = dict(zip(COLUMNS, rows, strict=True))
        return [columns | {"engine_id": np.full(rows.shape[1], engine_id, np.int64)}]

    def state(self) -> dict[str, Any]:
        """The state as JSON."""
        return {
            "events": self.events.waiting,
            "knows_running": self.knows_running,
            "running": list(self.running.items()),
            "told": list(self.counted_tokens.items()),
            "needs": list(self.prefill_tokens.items()),
            "started": sorted(self.started),
            "checkpoint": self.checkpoints.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.events.waiting, self.knows_running = state["events"], state["knows_running"]
        self.running, self.counted_tokens = dict(state["running"]), dict(state["told"])
        self.prefill_tokens = dict(state["needs"])
        self.started = set(state["started"])
        self.checkpoints.restore(state["checkpoint"])
