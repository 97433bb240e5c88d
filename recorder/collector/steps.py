"""The forwards of one engine until they become columns: which request holds each row of the batch, what the row ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.columns import BatchOccupancy, Forwards, columns_by_name, reservations
from fdtrace.recorder.collector.frames import BlocksFrame, CallFrame, ForwardFrame
from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.trace.column_values import ColumnArrays

MOST_ROWS = 1 << 16
"""Most rows of a batch: frames can name no more."""

Flushed = Callable[[Forwards, ColumnArrays, ColumnArrays], None]
"""Receives forwards, and the columns of `step` and `step_request` that were made of them."""


class Steps:
    """Used by both kinds of engine. `flush` passes its columns to `flushed`, and counts output tokens in the ledger."""

    def __init__(self, engine_id: int, ledger: Ledger, flushed: Flushed) -> None:
        self.engine_id, self.ledger, self.flushed = engine_id, ledger, flushed
        self.batch = BatchOccupancy.empty()
        self.held: dict[int, int] = {}
        """The request of each row after the last frame. `batch` is the state after the last flush."""
        self.forwards: Forwards | None = None
        self.num_waiting = 0
        """Forwards added since the last `take` of the engine."""

    def hold(self, row: int, number: int, computed: int, blocks: int) -> None:
        """From the next forward on, request `number` holds a row, with so many computed tokens. -1: the row is free."""
        self.held[row] = number
        self.batch.grow(row + 1)
        forwards = self.forwards
        if forwards is None or not len(forwards):
            self.batch.request[row], self.batch.computed[row], self.batch.blocks[row] = (
                number,
                computed,
                blocks,
            )
            return
        step = len(forwards)
        forwards.requests.add(step, row, number)
        forwards.computed.add(step, row, computed)
        forwards.blocks.add(step, row, blocks)

    def set_blocks(self, frame: BlocksFrame, next_step: int) -> None:
        """Set the blocks that rows hold from the next forward on. Decodes with new blocks are events of `next_step`."""
        if not frame.rows:
            return
        if max(frame.rows) >= MOST_ROWS:
            raise ValueError(f"row {max(frame.rows)} of a batch")
        self.batch.grow(max(frame.rows) + 1)
        forwards = self.forwards
        if forwards is None or not len(forwards):
            self.batch.blocks[list(frame.rows)] = frame.blocks
        else:
            forwards.blocks.extend(len(forwards), frame.rows, frame.blocks)
        if frame.extended:
            numbers = [self.held.get(row, -1) for row in frame.rows]
            self.ledger.extended(next_step, numbers, frame.blocks)

    def add(self, forward: ForwardFrame, step: int, call: CallFrame) -> int:
        """Add a forward as a step of the trace, with its call. Returns its index among those that wait for `flush`."""
        shape = forward.head.num_rows, forward.head.codes
        if self.forwards is None or self.forwards.shape != shape:
            self.flush()
            self.batch.grow(forward.head.num_rows)
            self.forwards = Forwards(shape, self.batch)
        if self.ledger.undated:
            self.ledger.date(step)
        forwards = self.forwards
        forwards.forwards.append(forward)
        forwards.steps.append(step)
        forwards.calls.append(call)
        self.num_waiting += 1
        return len(forwards.steps) - 1

    def note_waiting_rows(self, forward: ForwardFrame, step: int) -> None:
        """Add an event for each request that holds a row but does not run in the first forward of a recording.

        Nothing else would say what it had computed by then, or that it was not in the waiting queue.
        """
        ran = forward.ran_rows
        for row, number in self.held.items():
            if number < 0 or row in ran:
                continue
            request = self.ledger.live.get(number)
            if request is None or request.num_prompt_tokens < 0:
                continue
            detail = {
                "place": "running",
                "num_computed_tokens": int(self.batch.computed[row]),
                "num_total_tokens": request.num_prompt_tokens + request.num_output_tokens,
                "num_blocks": int(self.batch.blocks[row]),
            }
            self.ledger.event("found", step, number, detail=detail)

    def flush(self) -> None:
        """Turn the waiting forwards into columns."""
        forwards, self.forwards = self.forwards, None
        if forwards is None or not len(forwards):
            return
        totals, rows, numbers, outputs = forwards.decode()
        for number, tokens in zip(numbers.tolist(), outputs.tolist(), strict=True):
            self.ledger.add_output_tokens(number, tokens)
        columns = self._columns(forwards, totals)
        rows["engine_id"] = np.full(len(rows["forward"]), self.engine_id, np.int32)
        rows["step"] = columns["step"][rows.pop("forward")]
        self.flushed(forwards, columns, rows)

    def _columns(self, flushed: Forwards, totals: ColumnArrays) -> ColumnArrays:
        forwards, of_call = flushed.forwards, flushed.calls
        heads = columns_by_name(wire.ForwardHead._fields, [forward.head for forward in forwards])
        calls = columns_by_name(wire.ScheduleHead._fields, [call.head for call in of_call])
        figures = columns_by_name(wire.CallFigures._fields, [call.figures for call in of_call])
        memory = columns_by_name(wire.AllocatorFigures._fields, [forward.memory for forward in forwards])
        own = ("ts", "forward_us", "num_predicted_tokens", "num_stalled")
        return {
            **figures,
            **reservations(calls, figures),
            **memory,
            **totals,
            **{name: heads[name] for name in own},
            "step": np.array(flushed.steps, np.int64),
            "schedule_us": calls["schedule_us"],
            "reason": calls["reason"],
            "engine_id": np.full(len(forwards), self.engine_id, np.int64),
            "num_decode_tokens": totals["num_tokens"] - totals["num_prefill_tokens"],
        }

    def state(self) -> list[list[int]]:
        """The batch as JSON. Call it after `flush`."""
        return [self.batch.request.tolist(), self.batch.computed.tolist(), self.batch.blocks.tolist()]

    def restore(self, state: list[Any]) -> None:
        """Go on from a saved `state`."""
        self.batch = BatchOccupancy(*(np.array(column, np.int64) for column in state))
        self.held = dict(enumerate(self.batch.request.tolist()))
