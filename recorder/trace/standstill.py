"""Whether an engine stands still at the end of a recording, since when, and what waits for what.

The engine moves when a forward runs tokens or when a scheduling call hands something out. An engine that hangs still
calls `schedule()`: each call finds work but hands out nothing. These calls are the `idle` rows of `call`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.engine_terms import lacks_without_budget, refusal_text, scheduling_call
from fdtrace.recorder.trace.trace import Trace

LEAST_S = 1.0
"""Seconds without a move after which an engine that ran steps may stand still."""

FORWARDS = 2
"""It must also have been still for this many times its longest forward: FastDeploy goes on calling during a forward."""

MOST_S = 10.0
"""The upper limit of that wait, in seconds: the first forward of an engine may take a minute."""

LAST_MOVED = """
SELECT greatest(
    (SELECT max(epoch_ns(ts) + 1000::BIGINT * coalesce(forward_us, 0)) FROM step WHERE engine_id = $1),
    (SELECT max(epoch_ns(last_ts)) FROM call
     WHERE engine_id = $1 AND NOT (idle AND num_preempted = 0 AND num_aborted = 0))) AS moved,
    (SELECT max(forward_us) FROM step WHERE engine_id = $1) AS longest_us
"""

IDLE_CALLS = """
SELECT call, num_calls, epoch_ns(ts) AS ts, epoch_ns(last_ts) AS last_ts, token_budget, num_running, num_waiting,
       num_deferred, num_preallocated, num_free_blocks, not_admitted, num_missing_blocks, r.request_id AS head
FROM call c LEFT JOIN request r ON r.engine_id = c.engine_id AND r.request = c.head
WHERE c.engine_id = $1 AND idle AND epoch_ns(last_ts) > $2 AND first_step IS NULL ORDER BY call
"""

MOST_NAME = 60


@dataclass(frozen=True)
class Standstill:
    """The calls since the last move. Times are in ns, UTC.

    The counts are those of the last call, as in the table `call`. `head` is the id of the request at the head of the
    queue, `engine_name` the engine's name. `num_calls` is None if the first row stands for several calls and some of
    them came before the last move.
    """

    since: int
    until: int
    call: int
    num_calls: int | None
    token_budget: int | None
    num_running: int | None
    num_waiting: int | None
    num_deferred: int | None
    num_preallocated: int | None
    num_free_blocks: int | None
    num_blocks: int | None
    not_admitted: str | None
    num_missing_blocks: int | None
    head: str | None
    any_step: bool
    engine_name: str

    @property
    def seconds(self) -> float:
        """How long nothing has moved, from the last move to the last recorded call."""
        return (self.until - self.since) / 1e9

    @property
    def because(self) -> str:
        """Which requests wait, and for what."""
        running, waiting = self.num_running or 0, self.num_waiting or 0
        if self.token_budget == 0:
            if running:
                lacks = lacks_without_budget(self.engine_name)
                return f"the token budget is 0: {_requests(running, 'running')} {lacks}"
            return f"the token budget is 0 and {_requests(waiting, 'waiting')} get no chunk"
        if waiting and self.num_deferred is not None and self.num_deferred >= waiting:
            return f"each of {_requests(waiting, 'waiting')} is deferred: not ready to be scheduled"
        if waiting:
            return self._head_waits()
        if self.num_preallocated:
            return f"{self.num_preallocated:,} requests hold their blocks and do not join the running queue"
        return f"no forward ran a token of {_requests(running, 'running')}"

    def _head_waits(self) -> str:
        head = (
            f"request {printable(self.head, MOST_NAME)} at the head of the queue"
            if self.head
            else "the head of the queue"
        )
        free, all_blocks, missing = self.num_free_blocks, self.num_blocks, self.num_missing_blocks
        if self.not_admitted == "blocks" and missing is not None and free is not None:
            wanted = missing + free
            if all_blocks is not None and wanted > all_blocks and not self.num_running:
                return f"{head} wants {wanted:,} KV blocks, and requests have {all_blocks:,} in all: it never fits"
            return f"{head} lacks {missing:,} KV blocks: it wants {wanted:,}, and {free:,} are free"
        text = refusal_text(
            self.engine_name, self.not_admitted or "", free=free, blocks=all_blocks, budget=self.token_budget,
            running=self.num_running,
        )  # fmt: skip
        return f"{head} {text}"

    @property
    def short(self) -> str:
        """The head line of a screen."""
        return f"NOTHING MOVES since {_clock(self.since)[11:19]}: {self.because}"

    @property
    def sentence(self) -> str:
        """The whole report in one line."""
        calls = f"{self.num_calls:,} calls" if self.num_calls is not None else "all calls"
        begun = "nothing moved in this recording, since" if not self.any_step else "nothing has moved since"
        calls += f" of {scheduling_call(self.engine_name)}"
        return (
            f"{begun} {_clock(self.since)} UTC (call {self.call:,}; {calls} in {self.seconds:.1f} s handed out "
            f"nothing; {self.num_running or 0} run, {self.num_waiting or 0} wait): {self.because}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields, with times as ISO 8601, and the texts `because` and `sentence`."""
        times = {name: f"{_clock(getattr(self, name))}Z".replace(" ", "T") for name in ("since", "until")}
        return {
            **asdict(self),
            **times,
            "seconds": self.seconds,
            "because": self.because,
            "text": self.sentence,
        }


def standstill(trace: Trace, engine: Mapping[str, Any]) -> Standstill | None:
    """The standstill of an engine (a row of `engine`) at the end of its recording.

    None: the engine does not stand still, or this trace has no scheduling calls.
    """
    if not has_calls(trace):
        return None
    key = engine["engine_id"]
    moved = trace.rows(LAST_MOVED, [key])[0]
    last_moved = moved["moved"] or 0
    idle = trace.rows(IDLE_CALLS, [key, last_moved])
    if not idle:
        return None
    first, last = idle[0], idle[-1]
    since = max(first["ts"], last_moved)
    num_calls = None if first["ts"] < since else sum(row["num_calls"] for row in idle)
    if not _is_lasting(engine["name"], moved, num_calls, last["last_ts"] - since):
        return None
    counts = {name: value for name, value in last.items() if name in Standstill.__dataclass_fields__}
    return Standstill(**{
        **counts, "since": since, "until": last["last_ts"], "call": first["call"], "num_calls": num_calls,
        "num_blocks": usable_blocks(engine), "any_step": moved["moved"] is not None, "engine_name": engine["name"],
    })  # fmt: skip


def usable_blocks(engine: Mapping[str, Any]) -> int | None:
    """KV blocks that requests can hold. vLLM keeps one block for itself (`BlockPool.null_block`)."""
    blocks: int | None = engine["num_blocks"]
    return blocks - 1 if blocks and engine["name"] == "vllm" else blocks


def standstill_of(trace: Trace, engine_id: int) -> Standstill | None:
    """`standstill` of the engine of that number."""
    engines = trace.rows("FROM engine WHERE engine_id = $1", [engine_id])
    return standstill(trace, engines[0]) if engines else None


def _is_lasting(name: str, moved: Mapping[str, Any], num_calls: int | None, ns: int) -> bool:
    if name == "sandbox":  # it calls `schedule()` again only after something may have changed
        return True
    if moved["moved"] is None:
        return num_calls is None or num_calls > 1
    return ns / 1e9 > max(LEAST_S, min(FORWARDS * (moved["longest_us"] or 0) / 1e6, MOST_S))


def has_calls(trace: Trace) -> bool:
    """Whether this trace has the scheduling calls. Traces of schema 1 have none."""
    return int(trace.head["schema_version"]) >= 2


def _requests(count: int, doing: str) -> str:
    return f"{count:,} {doing} request{'s' if count != 1 else ''}"


def _clock(ns: int) -> str:
    moment = datetime.fromtimestamp(ns // 1_000_000_000, timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns // 1_000_000 % 1000:03d}"
