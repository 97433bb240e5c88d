"""The rows of a vLLM batch. vLLM's scheduler knows requests only by their ids; our frames name them by row.

What a call of `schedule()` changes is kept with the call until its forward is written: with asynchronous scheduling,
the next call comes before that.
"""

from __future__ import annotations

import struct
from typing import Any, Literal

from . import vllm_config as config
from . import vllm_figures as figures
from . import vllm_reasons as reasons
from . import wire
from .row_table import RowTable
from .writer import KeyframeRow


class CallInFlight:
    """One `schedule()` whose forward is not written yet.

    `ts`: when it ended, UTC ns. `schedule`: the fields of its own frame. `rows`: the request of each row. `starts`: for
    each request that it prefills, the tokens computed before the chunk. `dropped`: requests whose sampled tokens vLLM
    will drop.
    """

    __slots__ = (
        "blocks", "dropped", "joined", "output", "prefills", "rows", "schedule", "starts", "ts", "vacated",
    )  # fmt: skip

    def __init__(self, output: Any, ts: int) -> None:
        self.output, self.ts = output, ts
        self.schedule: tuple[Any, ...] = ()
        self.rows: tuple[str, ...] = ()
        self.vacated: list[int] = []
        self.joined: list[tuple[int, KeyframeRow]] = []
        self.blocks: list[tuple[int, int]] = []
        self.prefills: list[int] = []
        self.starts: dict[str, int] = {}
        self.dropped: set[str] = set()


class RowPacker:
    """Packs what each row of a call ran and sampled. With cold caches, `struct` takes less than `array`.

    `most`: tokens that a call can hand out.
    """

    def __init__(self, most: int) -> None:
        self.code: Literal["i", "h"] = "i" if most >= 1 << 15 else "h"
        self.resize(0)

    def resize(self, num_rows: int) -> None:
        """Pack so many rows from now on."""
        self.num_rows = num_rows
        self.pack_tokens = struct.Struct("%d%s" % (num_rows, self.code)).pack
        self.pack_emitted = struct.Struct("%dh" % num_rows).pack

    def pack(self, call: CallInFlight, output: Any) -> tuple[memoryview, memoryview]:
        """Tokens that each row of a call was given, and those that it sampled and vLLM keeps: signed integers.

        `output`: a `ModelRunnerOutput` with the tokens sampled; None: there are none.
        """
        rows, given = call.rows, call.output.num_scheduled_tokens
        if len(rows) != self.num_rows:
            self.resize(len(rows))
        tokens = self.pack_tokens(*[given.get(request_id, 0) for request_id in rows])
        if output is None:
            emitted = bytes(2 * len(rows))
        else:
            places, sampled = output.req_id_to_index, output.sampled_token_ids
            if call.dropped:
                places = {name: place for name, place in places.items() if name not in call.dropped}
            emitted = self.pack_emitted(
                *[len(sampled[places[name]]) if name in places else 0 for name in rows]
            )
        return memoryview(tokens).cast(self.code), memoryview(emitted).cast("h")


class BatchRows(RowTable):
    """Which running request holds which row, how many KV blocks it holds, and whether it is still in its prefill."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.cached: dict[str, int] = {}
        self.prefilling: set[str] = set()

    def enter(self, scheduler: Any, request: Any) -> int:
        """Give a request a row."""
        request_id = request.request_id
        self.held[request_id] = reasons.blocks_of(scheduler, request_id)
        return self.take(request_id)

    def leave(self, request_id: str) -> None:
        """Free a request's row. The size of its prefix cache hit is kept until `forget`."""
        self.give_back(request_id)
        self.prefilling.discard(request_id)
        self.held.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """A request ended."""
        self.leave(request_id)
        self.cached.pop(request_id, None)

    def take_in(self, scheduler: Any) -> None:
        """Add the requests that run already, before a call."""
        for request in scheduler.running:
            self.enter(scheduler, request)
            self.cached[request.request_id] = getattr(request, "num_cached_tokens", -1)
            if config.is_prefilling(request):
                self.prefilling.add(request.request_id)

    def apply(self, scheduler: Any, output: Any, call: CallInFlight) -> None:
        """Apply what a call handed out to the batch. The changes are kept in `call`."""
        scheduled = output.num_scheduled_tokens
        fresh = scheduled.keys() - self.rows.keys()
        for request_id in [name for name in scheduled if name in fresh] if fresh else ():
            call.joined.append(self._join(scheduler, output, request_id))
        call.vacated = self.take_vacated()
        for request_id in [name for name in self.prefilling if name in scheduled] if self.prefilling else ():
            request, row = scheduler.requests[request_id], self.rows[request_id]
            last = request.num_computed_tokens >= request.num_tokens
            call.starts[request_id] = request.num_computed_tokens - scheduled[request_id]
            call.prefills.append(row | wire.LAST_CHUNK if last else row)
            if last:
                self.prefilling.discard(request_id)
        for request_id, count in figures.new_blocks(output):
            if request_id in self.held and request_id not in fresh:
                self.held[request_id] += count
                call.blocks.append((self.rows[request_id], self.held[request_id]))
        call.rows = self.requests()

    def _join(self, scheduler: Any, output: Any, request_id: str) -> tuple[int, KeyframeRow]:
        request = scheduler.requests[request_id]
        row = self.enter(scheduler, request)
        start = request.num_computed_tokens - output.num_scheduled_tokens[request_id]
        self.cached.setdefault(request_id, start)
        if request_id in output.scheduled_spec_decode_tokens:
            # All but its last token was cached: vLLM padded it to the shape of a decode.
            start = request.num_tokens
        else:
            self.prefilling.add(request_id)
        return row, self.row(request, start)

    def row(self, request: Any, computed: int) -> KeyframeRow:
        """The row of a request that has `computed` tokens before its next step."""
        request_id = request.request_id
        return config.running_row(
            request, computed, self.held.get(request_id, 0), self.cached.get(request_id, -1)
        )
