"""The forwards of one engine, until they are columns: which request holds each row of the batch, what each row ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import ColumnArrays

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.columns import BatchOccupancy, Forwards, columns_by_name, reservations
from fdtrace.recorder.collector.frames import BlocksFrame, CallFrame, ForwardFrame
from fdtrace.recorder.collector.ledger import Ledger

MOST_ROWS = 1 << 16
"""Rows of a batch that frames can name."""

Flushed = Callable[[Forwards, ColumnArrays, ColumnArrays], None]
"""Called with forwards and the columns of `step` and `step_request` that they became."""


class Steps:
    """Both kinds of engine have one. What `flush` makes goes to `flushed`; output tokens are counted in the ledger."""

    def __init__(self, engine_id: int, ledger: Ledger, flushed: Flushed) -> None:
        self.engine_id, self.ledger, self.flushed = engine_id, ledger, flushed
        self.batch = BatchOccupancy.empty()
        self.held: dict[int, int] = {}
        """The request of each row as of the last frame; `batch` is as of the last flush."""
        self.forwards: Forwards | None = None
        self.num_waiting = 0
        """Forwards added since the last `taken`."""

    def hold(self, row: int, number: int, computed: int, blocks: int) -> None:
        """From the next forward on a request holds a row, with tokens computed and KV blocks; -1: it is free."""
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
        """Blocks that rows hold from the next forward on; decodes that got new ones are events of `next_step`."""
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
        """A forward, as a step of the trace, and the call that it belongs to; its place among those that wait for
        `flush`.
        """
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

    def flush(self) -> None:
        """Make columns of the forwards that wait."""
        forwards, self.forwards = self.forwards, None
        if forwards is None or not len(forwards):
            return
        totals, rows, numbers, outputs = forwards.decode()
        for number, tokens in zip(numbers.tolist(), outputs.tolist(), strict=True):
            self.ledger.made(number, tokens)
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
        """The batch, as JSON; call it after `flush`."""
        return [self.batch.request.tolist(), self.batch.computed.tolist(), self.batch.blocks.tolist()]

    def restore(self, state: list[Any]) -> None:
        """Go on from `state`."""
        self.batch = BatchOccupancy(*(np.array(column, np.int64) for column in state))
        self.held = dict(enumerate(self.batch.request.tolist()))
