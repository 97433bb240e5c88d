"""The rows of transformers' batch, and what each call of `schedule_batch()` changes in them.

The changes of a call are kept with it until its forward is written: in asynchronous batching the next call comes before
that.
"""

from __future__ import annotations

from array import array
from typing import Any

from . import torch_allocator, wire
from . import transformers_config as config
from .row_table import RowTable
from .transformers_figures import KVBlocks
from .transformers_found import RequestsAtStart
from .writer import KeyframeRow


class ScheduledBatch:
    """One `schedule_batch()` that handed out tokens, until its forward is written. `futures`: its batch, which
    identifies its forward and its update; `tokens`: tokens of each row; `starts`: request that it prefills -> tokens
    computed before the chunk; `began`: when its forward began (UTC ns; 0: not yet); `schedule`: fields of its frame.
    """

    __slots__ = (
        "began", "extended", "forward_us", "futures", "held", "ids", "joined", "launched", "memory", "prefills",
        "row_of", "schedule", "stalled", "starts", "tokens", "ts", "vacated",
    )  # fmt: skip

    def __init__(self, futures: list[Any], ts: int) -> None:
        self.futures, self.ts = futures, ts
        self.schedule: tuple[Any, ...] = ()
        self.ids: tuple[str, ...] = ()
        self.row_of: list[int] = []
        self.tokens = array("i")
        self.vacated: list[int] = []
        self.joined: list[tuple[int, KeyframeRow]] = []
        self.extended: list[tuple[int, int]] = []
        self.held: list[tuple[int, int]] = []
        self.prefills: list[int] = []
        self.stalled: list[int] = []
        self.starts: dict[str, int] = {}
        self.began, self.forward_us, self.launched = 0, wire.UNKNOWN_US, -1
        self.memory: wire.AllocatorFigures = torch_allocator.UNKNOWN

    def is_of(self, futures: Any) -> bool:
        """Whether this is the batch of these `FutureRequestState`s. The lists differ, their elements are the same."""
        return bool(futures) and futures[0] is self.futures[0]


class BatchMembers(RowTable):
    """Which request holds which row, its KV blocks, and whether its prefill still goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.cached: dict[str, int] = {}
        self.prefilling: set[str] = set()
        self.states: dict[str, Any] = {}
        self.sampling: set[str] = set()
        """Requests whose token was in flight when the recording began: it is not in them yet."""

    def forget(self, request_id: str) -> None:
        """A request ended, or was taken out of the batch."""
        self.give_back(request_id)
        self.prefilling.discard(request_id)
        self.held.pop(request_id, None)
        self.states.pop(request_id, None)

    def take_in(self, found: RequestsAtStart, blocks: KVBlocks) -> None:
        """Enter the requests that run already."""
        self.sampling = {name for name in found.in_flight if found.samples(name)}
        for state in found.running:
            if state.position_offset or state.generated_tokens:
                self._enter(state, blocks)
                self.cached.setdefault(state.request_id, -1)
                if state.remaining_prefill_tokens:
                    self.prefilling.add(state.request_id)

    def _enter(self, state: Any, blocks: KVBlocks) -> int:
        request_id = state.request_id
        self.held[request_id], self.states[request_id] = blocks.of(request_id), state
        return self.take(request_id)

    def apply(self, call: ScheduledBatch, blocks: KVBlocks) -> None:
        """Take in the batch of a call, and keep with it what it changed."""
        rows, prefilling, row_of = self.rows, self.prefilling, call.row_of
        for future in call.futures:
            state = future.state
            request_id = state.request_id
            row = rows.get(request_id)
            if row is None:
                row = self._join(call, future, blocks)
            elif self.states[request_id] is not state:
                self.states[request_id] = state
            row_of.append(row)
            if request_id in prefilling:
                self._chunk(call, future, row)
        call.vacated = self.take_vacated()
        call.ids = self.requests()
        tokens = call.tokens = array("i", bytes(4 * len(self.ids)))
        for row, future in zip(row_of, call.futures):
            tokens[row] = future.query_length
        self._blocks(call, blocks)
        if len(row_of) < len(rows):
            call.stalled = [
                row for request_id, row in rows.items() if not tokens[row] and request_id not in prefilling
            ]

    def _join(self, call: ScheduledBatch, future: Any, blocks: KVBlocks) -> int:
        state = future.state
        request_id, start = state.request_id, state.position_offset
        row = self._enter(state, blocks)
        # A request that comes back from the CPU with its outputs computes the last of them: it decodes.
        decodes = bool(state.generated_tokens) and future.query_length == 1 and future.has_new_token
        if not decodes:
            self.prefilling.add(request_id)
        self.cached.setdefault(request_id, start)
        call.joined.append((row, self.row(state, start + decodes)))
        return row

    def _chunk(self, call: ScheduledBatch, future: Any, row: int) -> None:
        request_id = future.state.request_id
        call.starts[request_id] = future.state.position_offset
        call.prefills.append(row | wire.LAST_CHUNK if future.has_new_token else row)
        if future.has_new_token:
            self.prefilling.discard(request_id)

    def _blocks(self, call: ScheduledBatch, blocks: KVBlocks) -> None:
        """Note requests that went on and hold more blocks now, or fewer because equal blocks are now shared."""
        tables, held = [manager.block_table for manager in blocks.managers], self.held
        only_table = tables[0] if len(tables) == 1 else None
        for row, future in zip(call.row_of, call.futures):
            request_id = future.state.request_id
            if only_table is not None:
                count = len(only_table.get(request_id, ()))
            else:
                count = sum(len(table.get(request_id, ())) for table in tables)
            if count != held[request_id]:
                held[request_id] = count
                (call.held if request_id in call.starts else call.extended).append((row, count))

    def row(self, state: Any, computed: int) -> KeyframeRow:
        """What a frame says of a request with `computed` tokens before its next step."""
        request_id = state.request_id
        row = config.running_row(
            state, computed, self.held.get(request_id, 0), self.cached.get(request_id, -1)
        )
        if request_id not in self.sampling:
            return row
        return row._replace(num_computed_tokens=computed + 1, num_output_tokens=row.num_output_tokens + 1)


def sampled(futures: list[Any], tokens: list[int]) -> dict[int, int]:
    """Which requests of a batch will take a token (place in the batch -> 1), by the rules of `update_batch`."""
    tokens_by_place = {}
    next_token = 0
    statuses = type(futures[0].state.status)
    finished, pending = statuses.FINISHED, statuses.PENDING
    for place, future in enumerate(futures):
        if not future.has_new_token:
            continue
        state, token = future.state, tokens[next_token]
        next_token += 1
        if state.status is finished or state.status is pending:
            continue
        limit = state.max_new_tokens
        if limit is None or len(state.generated_tokens) < limit or token in state._eos_token_ids:
            tokens_by_place[place] = 1
    return tokens_by_place
