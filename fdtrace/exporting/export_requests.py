"""Exports the requests of a recording as a request trace: Mooncake, Bailian, Azure. Simulators of others read these."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.exporting.hashed_blocks import HashedBlocks
    from fdtrace.recorder.trace.trace import Trace

REQUESTS = """
SELECT r.request, epoch_ns(r.arrived_at), r.arrived_step, c.call, r.num_prompt_tokens, r.num_output_tokens,
       r.finish_reason, r.block_hashes
FROM request r LEFT JOIN (SELECT first_step, min(call) AS call FROM call WHERE engine_id = $1 GROUP BY ALL) c
     ON c.first_step = r.arrived_step
WHERE r.engine_id = $1 ORDER BY r.arrived_at NULLS FIRST, c.call NULLS FIRST, r.arrived_step NULLS FIRST, r.request
"""
COUNTS = """
SELECT count(*) FILTER (arrived_step IS NOT NULL AND arrived_at IS NULL), min(epoch_ns(arrived_at)),
       count(block_hashes)
FROM request WHERE engine_id = $1
"""
SIZES = {"mooncake": 512, "bailian": 16}
ROWS_AT_ONCE = 10_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class ExportedRequest:
    """One request as a trace holds it."""

    number: int
    sent_ns: int
    """Since the first request; without a clock, its step's time."""
    prompt: int
    output: int
    hash_ids: list[int] | None


def export_requests(args: argparse.Namespace) -> None:
    """Write the file.

    Raises:
        UsageError: a block size cannot be had, or the file cannot be written.
        TraceError: the trace cannot be read.
    """
    from fdtrace.recorder.trace.trace import open_trace, reading
    from fdtrace.whole_file import whole_file

    with open_trace(args.trace) as trace:
        engine = trace.checked_engine(args.engine)
        with (
            reading(args.trace),
            whole_file(args.output, force=args.force) as half,
            open(half, "w", encoding="utf-8", newline="\n") as file,
        ):
            source = _Source(trace, engine, args)
            total = 0
            for line in _LINES[args.to](source):
                file.write(line)
                total += 1
    total -= args.to == "azure"
    for note in source.said():
        sys.stderr.write(f"fdtrace: {note}\n")
    sys.stderr.write(f"fdtrace: {total:,} requests in {args.output}\n")


class _Source:
    """The requests of one engine, in the order of their arrivals."""

    def __init__(self, trace: Trace, engine: dict[str, Any], args: argparse.Namespace) -> None:
        from fdtrace.exporting.hashed_blocks import HashedBlocks, hashed_block_size

        self.trace, self.number = trace, engine["engine_id"]
        self.notes: Counter[str] = Counter()
        self.step_ms = args.step_ms
        without_time, begin, hashed = self.trace.db.execute(COUNTS, [self.number]).fetchall()[0]
        self.has_clock = begin is not None and not without_time
        self.begin_ns = begin if self.has_clock else 0
        self.blocks: HashedBlocks | None = None
        size = engine["block_size"]
        if args.to in SIZES and hashed and size:
            wanted = args.block_size or SIZES[args.to]
            self.blocks = HashedBlocks(
                size, hashed_block_size(size, wanted, given=args.block_size is not None)
            )

    def requests(self) -> Iterator[ExportedRequest]:
        cursor = self.trace.db.cursor()
        cursor.execute(REQUESTS, [self.number])
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            for row in rows:
                request = self._request(*row)
                if request is not None:
                    yield request

    def _request(
        self,
        number: int,
        arrived: int | None,
        step: int | None,
        call: int | None,
        prompt: int | None,
        output: int | None,
        reason: str | None,
        hashes: Sequence[int] | None,
    ) -> ExportedRequest | None:
        if not prompt or not output:
            self.notes["requests of which no prompt or no output is known are left out"] += 1
            return None
        if reason is None:
            self.notes["requests had not finished: their output is what they had made"] += 1
        elif reason in ("abort", "error"):
            self.notes["requests were aborted or failed: their output is what they had made"] += 1
        if self.has_clock:
            sent = max(0, (arrived or 0) - self.begin_ns)
        else:
            sent = round((call if call is not None else step or 0) * self.step_ms * 1e6)
        if step is None:
            self.notes["requests came before the recording: they are sent at its first moment"] += 1
            sent = 0
        ids = None if self.blocks is None else self.blocks.ids(prompt, hashes or ())
        return ExportedRequest(number, sent, prompt, output, ids)

    def said(self) -> Iterator[str]:
        """What a reader of the file should know."""
        yield from (f"{count:,} {text}" for text, count in self.notes.items())
        if not self.has_clock:
            yield f"the trace has no times: a step counts as {self.step_ms:g} ms"
        if self.blocks is not None:
            yield (
                f"hash_ids: blocks of {self.blocks.size} tokens; of the engine, of {self.blocks.engine_size}. What "
                "lies behind a prompt's last full block of the engine is not recorded"
            )


def _mooncake(source: _Source) -> Iterator[str]:
    for request in source.requests():
        fields: dict[str, Any] = {
            "timestamp": _short(request.sent_ns / 1e6),
            "input_length": request.prompt,
            "output_length": request.output,
        }
        yield _line(fields, request)


def _bailian(source: _Source) -> Iterator[str]:
    for request in source.requests():
        fields = {
            "chat_id": request.number,
            "parent_chat_id": -1,
            "timestamp": _short(request.sent_ns / 1e9),
            "input_length": request.prompt,
            "output_length": request.output,
            "type": "text",
            "turn": 1,
        }
        yield _line(fields, request)


def _line(fields: dict[str, Any], request: ExportedRequest) -> str:
    if request.hash_ids is not None:
        fields["hash_ids"] = request.hash_ids
    return json.dumps(fields) + "\n"


def _short(value: float) -> int | float:
    rounded = round(value, 6)
    return int(rounded) if rounded.is_integer() else rounded


def _azure(source: _Source) -> Iterator[str]:
    yield "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    for request in source.requests():
        ns = source.begin_ns + request.sent_ns
        moment = EPOCH + timedelta(seconds=ns // 1_000_000_000)
        yield f"{moment:%Y-%m-%d %H:%M:%S}.{ns % 1_000_000_000 // 100:07},{request.prompt},{request.output}\n"


_LINES: dict[str, Callable[[_Source], Iterator[str]]] = {
    "mooncake": _mooncake,
    "bailian": _bailian,
    "azure": _azure,
}
