"""Waits in figures: of each wait whom it was behind, of each request its sums, of each head whom it blocked; totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.analysis.waiting import (
    DECODE,
    KINDS,
    NOT_JOINED,
    PREEMPTED,
    PREFILL,
    QUEUED,
    STOPPED,
    Waits,
)
from fdtrace.replayer.history.latency import Percentiles


@dataclass(frozen=True)
class BlockingRequest:
    """A request that was the head of the waiting queue: for how many steps, what it lacked, and who was behind it."""

    request_id: str
    first_step: int
    """The number of the first step in which it was the head."""
    num_steps: int
    """Steps in which it was the head and was not admitted."""
    not_admitted: str
    """Why it was not admitted in most of them; empty: not known."""
    max_missing_blocks: int | None
    """The most KV blocks that it lacked; None: it lacked none, or it is not known."""
    num_behind: int
    """The most requests that waited behind it at once."""
    num_steps_behind: int
    """The steps of all requests that waited behind it, together."""


@dataclass(frozen=True)
class WaitTotals:
    """The waits of one history together; steps, tokens, requests."""

    num_requests: int
    """Requests that came or ran in the history."""
    num_queued: int
    """Of these, requests that waited a step or more to run for the first time."""
    queued_steps: Percentiles
    """How many steps all requests waited for that, those that did not wait with 0."""
    max_queued_steps: int
    queued_us: Percentiles
    """The time from arrival to the first step, microseconds. Requests without recorded times are left out."""
    num_never_ran: int
    """Requests that had come, had not ended, and had not run when the history ended."""
    steps_blocked: Mapping[str, int]
    """By reason, as in `not_admitted`: the steps in which the head of the queue was not admitted. `unknown`: the
    history does not hold the reason.
    """
    num_steps_behind: int
    """The steps of all requests that waited behind a head, together: what head-of-line blocking costs."""
    num_starved_prefills: int
    """Requests that got no chunk in a step between two of their chunks."""
    max_prefill_gap: int
    """The most steps in a row without one."""
    num_paused_decodes: int
    """Requests that did not run in a step between two of their decodes."""
    max_decode_gap: int
    num_restarts: int
    """Prefills that began again after a preemption."""
    num_victims: int
    """Requests to which that happened."""
    num_discarded_tokens: int
    """Tokens that these had computed, and computed again."""
    share_computed_again: float
    """The same as a share of all tokens that prefills ran."""
    num_stopped: int
    """Requests that had run, had not ended, and ran no more."""
    num_not_joined: int
    """Prefill and decode roles: requests that held their KV blocks for a step or more before they joined."""
    num_never_joined: int
    """Of these, requests that still had not joined when the history ended."""
    max_blocks_not_joined: int | None
    """The most blocks that were held so at once; None: not known, or another role."""


def totals_of(waits: Waits) -> WaitTotals:
    """The waits of a history together."""
    kind, steps, request = waits.kind, waits.num_steps, waits.request
    lives = waits.lives
    ran = np.isin(np.arange(len(lives.arrived)), lives.rows.request)
    took_part = (lives.arrived < len(waits.steps)) | ran
    queued = np.zeros(len(lives.arrived), np.int64)
    queued[request[kind == QUEUED]] = steps[kind == QUEUED]
    queued = queued[took_part]
    known_us = waits.us[kind == QUEUED]
    again = int(waits.num_discarded_tokens.sum())
    prefilled = int(lives.rows.num_tokens[lives.rows.prefill].sum())
    return WaitTotals(
        num_requests=int(took_part.sum()),
        num_queued=int((queued > 0).sum()),
        queued_steps=Percentiles.of(queued.astype(np.float64)),
        max_queued_steps=int(queued.max(initial=0)),
        queued_us=Percentiles.of(known_us[~np.isnan(known_us)]),
        num_never_ran=int((took_part & ~ran & (lives.ended == MISSING)).sum()),
        steps_blocked=_steps_blocked(waits),
        num_steps_behind=sum(blocking.num_steps_behind for blocking in blocking_requests(waits)),
        num_starved_prefills=len(np.unique(request[kind == PREFILL])),
        max_prefill_gap=int(steps[kind == PREFILL].max(initial=0)),
        num_paused_decodes=len(np.unique(request[kind == DECODE])),
        max_decode_gap=int(steps[kind == DECODE].max(initial=0)),
        num_restarts=int((kind == PREEMPTED).sum()),
        num_victims=len(np.unique(request[kind == PREEMPTED])),
        num_discarded_tokens=again,
        share_computed_again=again / prefilled if prefilled else 0.0,
        num_stopped=int((kind == STOPPED).sum()),
        num_not_joined=int((kind == NOT_JOINED).sum()),
        num_never_joined=int(((kind == NOT_JOINED) & (waits.until == len(waits.steps))).sum()),
        max_blocks_not_joined=_max_blocks_not_joined(waits),
    )


def _max_blocks_not_joined(waits: Waits) -> int | None:
    blocks, held = waits.lives.held_blocks, waits.kind == NOT_JOINED
    if blocks is None or (blocks[waits.request[held]] == MISSING).any():
        return None
    return int(_sums(waits, held, blocks[waits.request[held]]).max(initial=0))


def _steps_blocked(waits: Waits) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for first, end in zip(waits.heads.first.tolist(), waits.heads.end.tolist(), strict=True):
        counts.update(waits.reasons[first:end].tolist())
    unknown = counts.pop("", 0)
    blocked = dict(counts.most_common())
    return {**blocked, "unknown": unknown} if unknown else blocked


def _sums(waits: Waits, chosen: NDArray[np.bool_], weights: Ints) -> Ints:
    """In each step, the weights of the chosen waits that it belongs to, together."""
    change = np.zeros(len(waits.steps) + 1, np.int64)
    np.add.at(change, waits.since[chosen], weights)
    np.add.at(change, waits.until[chosen], -weights)
    sums: Ints = np.cumsum(change)[:-1]
    return sums


def blocking_requests(waits: Waits) -> list[BlockingRequest]:
    """The requests that were the head of the queue, those first that most waited behind."""
    in_queue = waits.in_queue()
    behind = np.maximum(_sums(waits, in_queue, np.ones(int(in_queue.sum()), np.int64)) - 1, 0)
    by_request: dict[int, list[NDArray[np.int64]]] = {}
    heads = waits.heads
    entries = waits.request[heads.wait].tolist()
    for entry, first, end in zip(entries, heads.first.tolist(), heads.end.tolist(), strict=True):
        by_request.setdefault(entry, []).append(np.arange(first, end))
    found = []
    for entry, runs in by_request.items():
        steps = np.concatenate(runs)
        missing = int(waits.missing_blocks[steps].max(initial=MISSING))
        found.append(
            BlockingRequest(
                waits.lives.request_ids[entry],
                int(waits.steps[steps[0]]),
                len(steps),
                _most_common(waits.reasons[steps].tolist()),
                None if missing <= 0 else missing,
                int(behind[steps].max()),
                int(behind[steps].sum()),
            )
        )
    return sorted(found, key=lambda head: (-head.num_steps_behind, -head.num_steps, head.first_step))


def _most_common(reasons: list[str]) -> str:
    known = Counter(reason for reason in reasons if reason)
    return known.most_common(1)[0][0] if known else ""


def wait_rows(waits: Waits) -> list[dict[str, Any]]:
    """Each wait as a dictionary; None: not known, or it did not happen.

    `request_id`, `kind`, `since_step` and `until_step` (the step in which it ran), `num_steps`, `us`,
    `num_discarded_tokens`; and of the waiting queue: `num_head_steps` (steps in which it was the head itself),
    `behind` and `num_behind_steps` (who was the head in most of the others, and in how many), `not_admitted` (why the
    head was not admitted in most steps).
    """
    in_queue, spans, reasons = waits.in_queue().tolist(), waits.us.tolist(), _Reasons(waits.reasons)
    columns = (waits.request, waits.kind, waits.since, waits.until, waits.num_discarded_tokens)
    rows = []
    for at, (request, kind, since, until, discarded) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        head_steps, behind, behind_steps, reason = (
            _behind(waits, at, since, until, reasons) if in_queue[at] else (None, None, None, None)
        )
        rows.append(
            {
                "request_id": waits.lives.request_ids[request],
                "kind": KINDS[kind],
                "since_step": _number(waits, since),
                "until_step": _number(waits, until),
                "num_steps": until - since,
                "us": None if np.isnan(spans[at]) else spans[at],
                "num_head_steps": head_steps,
                "behind": behind,
                "num_behind_steps": behind_steps,
                "not_admitted": reason,
                "num_discarded_tokens": discarded if kind == PREEMPTED else None,
            }
        )
    return rows


def _number(waits: Waits, entry: int) -> int | None:
    return int(waits.steps[entry]) if entry < len(waits.steps) else None


class _Reasons:
    """Counts reasons in runs of steps. A wait may have as many steps as the history, and a history as many waits."""

    def __init__(self, reasons: NDArray[Any]) -> None:
        texts = reasons.tolist()
        self._names = [reason for reason in dict.fromkeys(texts) if reason]
        self._so_far = np.zeros((len(self._names), len(texts) + 1), np.int64)
        for row, name in zip(self._so_far, self._names, strict=True):
            np.cumsum(reasons == name, out=row[1:])

    def most_common(self, since: int, until: int) -> str | None:
        """The reason of most steps from entry `since` to before `until`; None: no reason is known."""
        counts = self._so_far[:, until] - self._so_far[:, since]
        return self._names[int(counts.argmax())] if counts.any() else None


def _behind(
    waits: Waits, wait: int, since: int, until: int, reasons: _Reasons
) -> tuple[int, str | None, int, str | None]:
    """Steps as the head itself; who was the head in most of the others, and in how many; why it was not admitted."""
    heads = waits.heads
    runs = slice(
        np.searchsorted(heads.end, since, side="right"), np.searchsorted(heads.first, until, side="left")
    )
    steps = np.minimum(heads.end[runs], until) - np.maximum(heads.first[runs], since)
    is_own = heads.wait[runs] == wait
    requests, entries = np.unique(waits.request[heads.wait[runs][~is_own]], return_inverse=True)
    behind, behind_steps = None, 0
    if len(requests):
        steps_of = np.bincount(entries, steps[~is_own])
        most = int(steps_of.argmax())
        behind, behind_steps = waits.lives.request_ids[int(requests[most])], int(steps_of[most])
    return int(steps[is_own].sum()), behind, behind_steps, reasons.most_common(since, until)


def request_rows(waits: Waits) -> list[dict[str, Any]]:
    """Of each request that waited: its steps of each kind (`queued_steps`, …), restarts, tokens computed again, and
    whom it waited behind for most steps; the longest first.
    """
    by_request: dict[str, dict[str, Any]] = {}
    for row in wait_rows(waits):
        sums = by_request.setdefault(
            row["request_id"],
            {
                "request_id": row["request_id"],
                "num_steps": 0,
                **{f"{kind}_steps": 0 for kind in KINDS},
                "queued_us": None,
                "num_restarts": 0,
                "num_discarded_tokens": 0,
                "behind": None,
                "num_behind_steps": 0,
            },
        )
        sums["num_steps"] += row["num_steps"]
        sums[f"{row['kind']}_steps"] += row["num_steps"]
        if row["behind"] is not None and row["num_behind_steps"] > sums["num_behind_steps"]:
            sums["behind"], sums["num_behind_steps"] = row["behind"], row["num_behind_steps"]
        if row["kind"] == "queued":
            sums["queued_us"] = row["us"]
        if row["kind"] == "preempted":
            sums["num_restarts"] += 1
            sums["num_discarded_tokens"] += row["num_discarded_tokens"]
    return sorted(by_request.values(), key=lambda row: -row["num_steps"])


def waits_dict(waits: Waits) -> dict[str, Any]:
    """Everything, in values that JSON has."""
    return {
        "totals": asdict(totals_of(waits)),
        "heads": [asdict(blocking) for blocking in blocking_requests(waits)],
        "requests": request_rows(waits),
    }
