"""Who waited, how long, for what, and behind whom. `docs/waiting.md` has the definitions.

A wait is a run of steps in which a request that was there ran nothing. Its kind says what it waited for:

- `queued`: to run for the first time, since it came (prefill and decode roles: to get its slot and its KV blocks);
- `preempted`: to run again after a preemption. It then begins its prefill again, below what it had computed;
- `prefill`: for the next chunk of its prompt;
- `decode`: for its next decode;
- `stopped`: it had run, and did not run again in this history, though it had not ended;
- `not_joined`: in the prefill and decode roles it held its KV blocks, and had not joined the running queue;
- `joined`: there it had joined, and had not run yet.

In the first two it stands in the waiting queue. The head of that queue is the request that was preempted last, else
the one that came first: FastDeploy puts preempted requests at the front of its queue
(`ResourceManagerV1.reschedule_preempt_task`), and so does vLLM (`Scheduler._preempt_request`). Neither admits another
request before the head.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Floats, Ints
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.lives import RequestLives

KINDS = ("queued", "preempted", "prefill", "decode", "stopped", "not_joined", "joined")
QUEUED, PREEMPTED, PREFILL, DECODE, STOPPED, NOT_JOINED, JOINED = range(len(KINDS))


@dataclass(frozen=True, eq=False)
class QueueHeads:
    """Who was the head of the waiting queue: arrays of one entry a run of steps, in their order."""

    first: Ints
    """The entry of the first step."""
    end: Ints
    """The entry after the last one."""
    wait: Ints
    """The entry of the head's wait."""


@dataclass(frozen=True, eq=False)
class Waits:
    """The waits of one history, ordered by when they began; arrays of one entry a wait."""

    name: str
    lives: RequestLives
    steps: Ints
    """The numbers of the history's steps."""
    reasons: NDArray[Any]
    """Of each step: why the head of the queue was not admitted, as in column `not_admitted`; empty: not known."""
    missing_blocks: Ints
    """Of each step: the KV blocks that the head lacked; MISSING: it lacked none, or it is not known."""
    request: Ints
    """The entry of the request in `lives`."""
    kind: Ints
    """The entry of the kind in `KINDS`."""
    since: Ints
    """The entry of the first step that ran without it."""
    until: Ints
    """The entry of the step in which it ran; the number of steps: it did not run any more."""
    num_discarded_tokens: Ints
    """Of a preemption: tokens that it had computed, and computes again."""
    heads: QueueHeads

    @property
    def num_steps(self) -> Ints:
        """How many steps each wait took."""
        return self.until - self.since

    @property
    def us(self) -> Floats:
        """How long each took, microseconds: until the scheduling call of the step in which it ran. NaN: not known."""
        starts, waits = self.lives.starts_us, len(self.request)
        if starts is None or not len(starts):
            return np.full(waits, np.nan)
        began = starts[np.minimum(self.since, len(starts) - 1)]
        if self.lives.arrived_us is not None:
            began = np.where(self.kind == QUEUED, self.lives.arrived_us[self.request], began)
        ended = starts[np.minimum(self.until, len(starts) - 1)]
        spans: Floats = np.where(self.until < len(starts), np.maximum(ended - began, 0.0), np.nan)
        return spans

    def in_queue(self) -> NDArray[np.bool_]:
        """Which waits were in the waiting queue."""
        return np.isin(self.kind, (QUEUED, PREEMPTED))


def waits_of(history: History) -> Waits | None:
    """The waits of a history; None if it does not know what its requests ran."""
    lives = None if history.lives is None else history.lives()
    return None if lives is None else waits_from(history.name, lives, history.columns)


def waits_from(name: str, lives: RequestLives, columns: Mapping[str, NDArray[Any]]) -> Waits:
    """The waits of requests in steps with these columns: `step`, and if known `not_admitted`, `num_missing_blocks`,
    `num_waiting`.
    """
    steps = np.asarray(columns["step"], np.int64)
    reasons = np.asarray(columns.get("not_admitted", np.full(len(steps), "", object)), object)
    missing = np.asarray(columns.get("num_missing_blocks", np.full(len(steps), MISSING)), np.int64)
    waits = np.concatenate([*_before_first(lives, len(steps)), *_between(lives, len(steps))], axis=1)
    request, kind, since, until, discarded = waits[:, np.lexsort((waits[0], waits[2]))]
    waiting = np.asarray(columns.get("num_waiting", np.full(len(steps), MISSING)), np.int64)
    heads = _in_steps(_heads(request, kind, since, until, len(steps)), waiting != 0)
    return Waits(name, lives, steps, reasons, missing, request, kind, since, until, discarded, heads)


def _wait_rows(request: Ints, kind: int | Ints, since: Ints, until: Ints, discarded: int | Ints = 0) -> Ints:
    """The waits that take a step at least, or threw tokens away: five rows, a column a wait."""
    rows = np.stack(np.broadcast_arrays(request, kind, since, until, discarded)).astype(np.int64)
    return rows[:, (rows[3] > rows[2]) | (rows[4] > 0)]


def _before_first(lives: RequestLives, num_steps: int) -> list[Ints]:
    """From the arrival to the first step in which a request ran, or to its end, or to that of the history."""
    count = len(lives.arrived)
    first = np.full(count, num_steps, np.int64)
    np.minimum.at(first, lives.rows.request, lives.rows.step)
    until = np.minimum(first, _or_last(lives.ended, num_steps))
    arrived, entries = np.minimum(lives.arrived, until), np.arange(count)
    if lives.held_from is None or lives.held_to is None:
        return [_wait_rows(entries, _first_kinds(lives), arrived, until)]
    got = np.clip(_or_last(lives.held_from, num_steps), arrived, until)
    joined = np.clip(_or_last(lives.held_to, num_steps), got, until)
    return [
        _wait_rows(entries, QUEUED, arrived, got),
        _wait_rows(entries, NOT_JOINED, got, joined),
        _wait_rows(entries, JOINED, joined, until),
    ]


def _first_kinds(lives: RequestLives) -> Ints:
    """What each request waits for until its first step: to run at all, or to go on if it was found running."""
    kinds = np.full(len(lives.arrived), QUEUED, np.int64)
    if lives.found_running is not None and lives.found_running.any():
        entries, first = np.unique(lives.rows.request, return_index=True)  # rows ascend by step
        kinds[entries] = np.where(lives.rows.prefill[first], PREFILL, DECODE)
        kinds[~lives.found_running] = QUEUED
    return kinds


def _or_last(entries: Ints, num_steps: int) -> Ints:
    """The entries, with the number of steps in place of MISSING."""
    return np.where(entries == MISSING, num_steps, entries)


def _between(lives: RequestLives, num_steps: int) -> tuple[Ints, Ints]:
    """Between two steps in which a request ran, and after the last if it had not ended."""
    rows = lives.rows
    order = np.lexsort((rows.step, rows.request))
    request, step, prefill = rows.request[order], rows.step[order], rows.prefill[order]
    before = rows.num_computed_tokens[order]
    gained = np.where(prefill, rows.num_tokens[order], rows.num_accepted_tokens[order])
    computed = before + gained  # a decode's tokens include the one sampled before, whose KV it computes
    same = request[1:] == request[:-1]
    again = same & prefill[1:] & (~prefill[:-1] | (before[1:] < computed[:-1]))
    kind = np.where(again, PREEMPTED, np.where(prefill[1:], PREFILL, DECODE))
    discarded = np.where(again, np.maximum(computed[:-1] - before[1:], 0), 0)
    until = np.where(same, step[1:], step[:-1] + 1)
    between = _wait_rows(request[1:], kind, step[:-1] + 1, until, np.where(same, discarded, 0))
    is_last = np.ones(len(request), bool)
    is_last[:-1] = ~same
    stays = is_last & (lives.ended[request] == MISSING)
    left = _wait_rows(request[stays], STOPPED, step[stays] + 1, np.full(int(stays.sum()), num_steps))
    return between, left


def _in_steps(heads: QueueHeads, chosen: NDArray[np.bool_]) -> QueueHeads:
    """The heads in the chosen steps. If the queue is empty after a call, nobody was refused: a request that this call
    admits or preempts may still not run in its step.
    """
    wait = np.full(len(chosen), MISSING, np.int64)
    for first, end, head in zip(heads.first.tolist(), heads.end.tolist(), heads.wait.tolist(), strict=True):
        wait[first:end] = head
    wait[~chosen] = MISSING
    first = np.flatnonzero(np.diff(wait, prepend=MISSING - 1))
    end = np.append(first[1:], len(wait))
    is_head = wait[first] != MISSING
    return QueueHeads(first[is_head], end[is_head], wait[first][is_head])


def _heads(request: Ints, kind: Ints, since: Ints, until: Ints, num_steps: int) -> QueueHeads:
    """The head of the queue in each step. `since` ascends."""
    queue: list[tuple[int, int, int, int]] = []
    coming = [i for i, what in enumerate(kind.tolist()) if what in (QUEUED, PREEMPTED)]
    heads: list[tuple[int, int, int]] = []
    begin, end, who, preempted = (
        since.tolist(),
        until.tolist(),
        request.tolist(),
        (kind == PREEMPTED).tolist(),
    )
    at = step = 0
    while step < num_steps:
        while at < len(coming) and begin[coming[at]] <= step:
            wait = coming[at]
            place = (0, -begin[wait]) if preempted[wait] else (1, begin[wait])
            heapq.heappush(queue, (*place, who[wait], wait))
            at += 1
        while queue and end[queue[0][3]] <= step:
            heapq.heappop(queue)
        next_step = begin[coming[at]] if at < len(coming) else num_steps
        if queue:
            wait = queue[0][3]
            next_step = min(next_step, end[wait])
            goes_on = bool(heads) and heads[-1][1:] == (step, wait)
            heads.append((heads.pop()[0] if goes_on else step, next_step, wait))
        step = next_step
    table = np.array(heads, np.int64).reshape(-1, 3)
    return QueueHeads(table[:, 0], table[:, 1], table[:, 2])
