"""The worker: runs the forward that a scheduling call leads to, and says what really ran."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.sandbox import framework, ngram
from fdtrace.sandbox.batch import Batch, BatchRow
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.kv_cache import PagedKVCache
from fdtrace.sandbox.model import Transformer
from fdtrace.sandbox.sandbox_request import SandboxRequest, Scheduled


@dataclass(frozen=True)
class RanRow:
    """What one request ran in a forward, and what came of it. Tokens."""

    request: SandboxRequest
    kind: Literal["prefill", "decode"]
    num_tokens: int
    num_computed_tokens: int
    """Before the forward."""
    num_draft_tokens: int
    num_accepted_tokens: int
    num_blocks: int
    emitted: list[int]


class ModelRunner:
    """Slots as the worker knows them, and the model. Attributes tell the latest forward that ran tokens.

    A slot past its prefill decodes in every forward, whether or not the scheduling call named it, unless its
    block table does not reach its last draft: then it is stalled (FastDeploy: `is_block_step`) and stays in
    the batch.
    """

    def __init__(self, config: EngineConfig, paddle: Any) -> None:
        self.config = config
        self.step = -1
        """Number of the latest forward that ran tokens, from 0; -1 before the first."""
        self.seq_lens_this_time: NDArray[np.int32] = np.zeros(config.max_num_seqs, dtype=np.int32)
        """Tokens that each slot ran."""
        self.accept_num: NDArray[np.int32] = np.zeros(config.max_num_seqs, dtype=np.int32)
        """Tokens that each slot emitted; of a decode 1 + accepted drafts, cut at `max_tokens`."""
        self.stalled: list[int] = []
        """Slots that could not run: their block table is too short."""
        self.memory: framework.FrameworkMemory | None = None
        """Allocated, reserved, and this forward's peaks of both, bytes; None where Paddle does not count."""
        self.ran: list[RanRow] = []
        self.slots: list[SandboxRequest | None] = [None] * config.max_num_seqs
        self._model = Transformer(paddle, config)
        self._cache = PagedKVCache(paddle, config)
        self._meter = framework.MemoryMeter(paddle)

    def execute_model(self, scheduled: Scheduled) -> bool:
        """Run one forward; False where no token was to run: that is no step."""
        self._update_slots(scheduled)
        chunks = {request.slot for request, _, _ in scheduled.prefills}
        decodes = [
            request for request in self.slots if request and request.prefilled and request.slot not in chunks
        ]
        drafts, size = self.config.num_drafts, self.config.block_size
        self.stalled = [request.slot for request in decodes if not request.can_decode(drafts, size)]
        work = [self._decode(request) for request in decodes if request.slot not in self.stalled]
        work += [_prefill(request, start, end) for request, start, end in scheduled.prefills]
        self.seq_lens_this_time.fill(0)
        self.accept_num.fill(0)
        self.ran = []
        if not work:
            return False
        self.step += 1
        self._run(work)
        return True

    def warm_up(self) -> None:
        """One forward of `max_profiled_tokens` tokens, before any request: what start-up profiling runs."""
        longest, table = self.config.max_model_len, range(self.config.num_blocks)
        lengths = [longest] * (self.config.max_profiled_tokens // longest)
        lengths += [rest] if (rest := self.config.max_profiled_tokens % longest) else []
        rows = [BatchRow(np.zeros(length, dtype=np.int32), 0, table, num_logits=1) for length in lengths]
        self._model.forward(Batch.pack(rows, self.config.block_size), self._cache)

    def _update_slots(self, scheduled: Scheduled) -> None:
        """Forget who left; seat who begins a prefill. Finished requests left after their last forward."""
        gone = [request for request, *_ in scheduled.preempted] + scheduled.aborted
        self.slots = [None if request in gone else request for request in self.slots]
        for request, _, _ in scheduled.prefills:
            self.slots[request.slot] = request

    def _decode(self, request: SandboxRequest) -> tuple[SandboxRequest, BatchRow]:
        tokens = request.tokens
        drafts = ngram.draft(tokens, self.config.num_drafts)
        run = np.concatenate([tokens[-1:], drafts])
        return request, BatchRow(run, len(tokens) - 1, request.block_table, num_logits=len(run))

    def _run(self, work: Sequence[tuple[SandboxRequest, BatchRow]]) -> None:
        self._meter.reset_peak()
        batch = Batch.pack([row for _, row in work], self.config.block_size)
        chosen = self._model.forward(batch, self._cache)
        self.memory = self._meter.read()
        begin = 0
        for request, row in work:
            ran = _outcome(request, row, chosen[begin : begin + row.num_logits])
            begin += row.num_logits
            self.ran.append(ran)
            self.seq_lens_this_time[request.slot] = ran.num_tokens
            self.accept_num[request.slot] = len(ran.emitted)
            if len(ran.emitted) == request.num_remaining_tokens:
                self.slots[request.slot] = None


def _prefill(request: SandboxRequest, start: int, end: int) -> tuple[SandboxRequest, BatchRow]:
    done = end >= request.num_prefill_tokens
    return request, BatchRow(request.tokens[start:end], start, request.block_table, num_logits=int(done))


def _outcome(request: SandboxRequest, row: BatchRow, chosen: NDArray[np.int32]) -> RanRow:
    """What the argmaxes mean for a row: a decode emits what the model chose as far as it was drafted."""
    decode = request.prefilled
    drafts = row.tokens[1:] if decode else row.tokens[:0]
    accepted = ngram.count_accepted(drafts, chosen) if decode else 0
    emitted = [int(token) for token in chosen[: accepted + 1]][: request.num_remaining_tokens]
    return RanRow(
        request=request,
        kind="decode" if decode else "prefill",
        num_tokens=len(row.tokens),
        num_computed_tokens=request.num_total_tokens if decode else row.start,
        num_draft_tokens=len(drafts),
        num_accepted_tokens=max(0, len(emitted) - 1),
        num_blocks=len(request.block_table),
        emitted=emitted,
    )
