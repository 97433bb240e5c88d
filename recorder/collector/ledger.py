"""The requests and events of one recorded process: turns what the decoder reports into rows of the trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.trace.column_values import MISSING


@dataclass
class OpenRequest:
    """A request that has not finished: what is known so far for its row of the trace."""

    request_id: str
    arrived_at: int = MISSING
    arrived_step: int = MISSING
    num_prompt_tokens: int = MISSING
    max_tokens: int = MISSING
    num_cached_tokens: int = MISSING
    num_output_tokens: int = 0
    preempted: bool = False
    block_hashes: list[int] = field(default_factory=list)
    """Salted hashes, one for each full prompt block."""
    sent_at: int = MISSING
    priority: int = wire.NO_PRIORITY


class Ledger:
    """`finished` and `events` are rows in the schema's order, which `take` takes away. `live` is by request number."""

    def __init__(self, engine_id: int) -> None:
        self.engine_id = engine_id
        self.live: dict[int, OpenRequest] = {}
        self.finished: list[tuple[Any, ...]] = []
        self.events: list[tuple[Any, ...]] = []
        self.undated: list[list[Any]] = []

    def arrived(self, number: int, request: OpenRequest) -> None:
        """Add a request that arrived. If its time of arrival is not known, it was there before the recording."""
        self.live[number] = request
        if request.arrived_at >= 0:
            self.event("arrived", request.arrived_step, number, request.arrived_at)

    def joined(self, number: int, request: OpenRequest, step: int) -> None:
        """A request holds a row of the batch from `step` on. `request`: what the frame says about it."""
        live = self.live.setdefault(number, request)
        live.num_cached_tokens, live.num_output_tokens = (
            request.num_cached_tokens,
            request.num_output_tokens,
        )
        if live.preempted:
            live.preempted = False
            self.event("rescheduled", step, number)

    def is_out(self, number: int) -> bool:
        """Whether a request lost its row and has not come back."""
        request = self.live.get(number)
        return request is not None and request.preempted

    def preempted(self, number: int) -> None:
        """A request lost its row, and will come back later."""
        if number in self.live:
            self.live[number].preempted = True

    def add_output_tokens(self, number: int, tokens: int) -> None:
        """A request has `tokens` more output tokens."""
        request = self.live.get(number)
        if request is not None:
            request.num_output_tokens += tokens

    def finish(self, number: int, step: int, ts: int, reason: str, num_output_tokens: int) -> None:
        """A request ended in `step`."""
        request = self.live.pop(number, None)
        if request is None:
            return
        request.num_output_tokens = num_output_tokens
        self.finished.append(self.row(number, request, ts, reason))
        self.event("finished", step, number, ts, reason, {"num_output_tokens": num_output_tokens})

    def row(
        self, number: int, request: OpenRequest, finished_at: int | None, reason: str | None
    ) -> tuple[Any, ...]:
        """A row of `request` in the schema's order. Times are in ns."""
        figures = (
            request.arrived_at, request.arrived_step, request.num_prompt_tokens, request.max_tokens,
            request.num_cached_tokens, request.num_output_tokens,
        )  # fmt: skip
        nullable = (None if value < 0 else value for value in figures)
        return (
            self.engine_id,
            number,
            request.request_id,
            *nullable,
            finished_at,
            reason,
            request.block_hashes,
            None if request.sent_at < 0 else request.sent_at,
            request.priority,
        )

    def live_rows(self) -> list[tuple[Any, ...]]:
        """The rows of the requests that have not finished."""
        return [self.row(number, request, None, None) for number, request in self.live.items()]

    def event(
        self,
        kind: str,
        step: int,
        number: int = MISSING,
        ts: int = MISSING,
        reason: str = "",
        detail: dict[str, Any] | str | None = None,
        *,
        call: int = MISSING,
    ) -> None:
        """Add an event. If its step is not known yet (negative), it waits for `date`."""
        text = json.dumps(detail) if isinstance(detail, dict) else detail
        when, whom, which_call = (None if value < 0 else value for value in (ts, number, call))
        row = [self.engine_id, step, when, kind, whom, reason or None, text, which_call]
        if step < 0:
            self.undated.append(row)
        else:
            self.events.append(tuple(row))

    def extended(self, step: int, numbers: Sequence[int], blocks: Sequence[int]) -> None:
        """Decodes got new blocks. This is the most frequent event, so it has code of its own."""
        if step < 0:
            for number, count in zip(numbers, blocks, strict=True):
                self.event("extended", step, number, detail={"num_blocks": count})
            return
        engine = self.engine_id
        self.events += [
            (
                engine,
                step,
                None,
                "extended",
                number if number >= 0 else None,
                None,
                f'{{"num_blocks": {count}}}',
                None,
            )
            for number, count in zip(numbers, blocks, strict=True)
        ]

    def date(self, step: int) -> None:
        """The first step is known now: give it to all events that came before it."""
        for event in self.undated:
            event[1] = step
            self.events.append(tuple(event))
            request = self.live.get(event[4]) if event[3] == "arrived" else None
            if request is not None:
                request.arrived_step = step
        self.undated = []

    def take(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """The finished rows of `request` and the rows of `event`, since the last call."""
        rows = self.finished, self.events
        self.finished, self.events = [], []
        return rows

    def state(self) -> dict[str, Any]:
        """All that a successor needs to go on, as JSON, until the next frame. Call it after `take`."""
        return {
            "undated": self.undated,
            "live": {str(number): vars(request) for number, request in self.live.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self.undated = state["undated"]
        self.live = {int(number): OpenRequest(**fields) for number, fields in state["live"].items()}
