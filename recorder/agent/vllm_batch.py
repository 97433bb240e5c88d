"""The rows of a batch of vLLM's: its scheduler knows requests by name alone, a frame by row.

What a call of `schedule()` changes is kept with the call until its own forward is written: with asynchronous
scheduling the next call comes before that.
"""

from __future__ import annotations

from typing import Any

from . import vllm_config as config
from . import vllm_figures as figures
from . import wire
from .row_table import RowTable
from .writer import KeyframeRow


class CallInFlight:
    """One `schedule()` whose forward is not written yet.

    `ts`: when it had ended, UTC ns; `schedule`: what its own frame says. `rows`: the request of
    each row; `starts`: tokens computed before its chunk, of each request that it prefills; `dropped`: requests whose
    sampled tokens are thrown away.
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


class BatchRows(RowTable):
    """Which running request holds which row, its KV blocks, and whether its prefill still goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.cached: dict[str, int] = {}
        self.prefilling: set[str] = set()

    def enter(self, scheduler: Any, request: Any) -> int:
        """Give a request a row."""
        request_id = request.request_id
        self.held[request_id] = figures.blocks_of(scheduler, request_id)
        return self.take(request_id)

    def leave(self, request_id: str) -> None:
        """Free a request's row; what its prefix cache hit was stays known until `forget`."""
        self.give_back(request_id)
        self.prefilling.discard(request_id)
        self.held.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """A request ended."""
        self.leave(request_id)
        self.cached.pop(request_id, None)

    def take_in(self, scheduler: Any) -> None:
        """The requests that run already, before a call."""
        for request in scheduler.running:
            self.enter(scheduler, request)
            self.cached[request.request_id] = getattr(request, "num_cached_tokens", -1)
            if config.is_prefilling(request):
                self.prefilling.add(request.request_id)

    def apply(self, scheduler: Any, output: Any, call: CallInFlight) -> None:
        """Take in what a call handed out, and keep with it what it changed."""
        scheduled = output.num_scheduled_tokens
        fresh = scheduled.keys() - self.rows.keys()
        for request_id in [name for name in scheduled if name in fresh] if fresh else ():
            call.joined.append(self._join(scheduler, output, request_id))
        call.vacated = self.told()
        for request_id in [name for name in self.prefilling if name in scheduled]:
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
            start = request.num_tokens  # all but its last token is cached: it was padded to a decode's shape
        else:
            self.prefilling.add(request_id)
        return row, self.row(request, start)

    def row(self, request: Any, computed: int) -> KeyframeRow:
        """What a frame says of a request with `computed` tokens before its next step."""
        request_id = request.request_id
        return config.running_row(
            request, computed, self.held.get(request_id, 0), self.cached.get(request_id, -1)
        )
