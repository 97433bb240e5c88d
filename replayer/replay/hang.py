"""When a replay hangs: there are requests, and no later call brings any of them further.

Theory. A call and its forward make **progress** when one of these happens:

1. A decode runs, or a prefill completes: a request gains a token of output. No preemption takes it away again.
2. A request ends, or leaves: it finished, was aborted, or (decode role) was preempted for good.
3. A prefill comes further than it has been since the last progress of the first two kinds. A preempted request
   computes its tokens again; until it is further than before, that is no progress.
4. A request gets its slot and blocks before it runs, joins, or gives them back (prefill and decode roles).

An arrival or an abort is no progress by itself: its effects are progress when they happen.

Every request has finitely many tokens and ends once, so a workload has finitely many steps with progress. A workload
that never ends has a last step with progress. After it two things can happen.

- **Nothing moves**: a call hands out nothing and its forward runs nothing. Then the state of the scheduler is the same
  as before. Nothing else changes it, so every later call decides the same.
- **It goes round**: calls preempt again and again, and tokens are computed again and again (a livelock); or decodes get
  0 blocks again and again. A request loses what it computed only by a preemption, so each round has a call that
  preempts (or one that extends by nothing). The states after such calls are compared by Brent's method: one state is
  kept, and replaced after 1, 2, 4, 8 … calls. The scheduler is deterministic: if a state comes back, all that happened
  between the two calls comes back for ever.

So there is no false alarm. If every round of a storm of preemptions completes a prefill, that is progress, however long
it takes. If a storm makes no progress for a while, it is no hang before its state has come back. The model's state is
compared as a whole (`Scheduler.snapshot`). Only a part is visible of the state of an engine's real scheduler and of the
prefix cache. Then the visible state must come back `REPEATS` times; and if nothing is preempted, it must stay so long
that a decaying reserve has reached its end.

It is a hang only if nothing more comes from outside; the code that runs the workload decides that. The hang began with
the first call that moved nothing, or, if it goes round, with the first call after the last progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.history.history import Hang
from fdtrace.replayer.model.events import BlockShortage, Decision, Forward
from fdtrace.replayer.replay.any_scheduler import AnyScheduler

REPEATS = 4
"""How often a state that is only partly visible must come back."""

STILL_CALLS = 3
"""Calls in a row that must move nothing if the state is only partly visible: a prefix cache may evict in the first."""

MOST_NAMES, LONGEST_SHOWN = 3, 60
"""Requests named in a cause, and characters of each."""


class HangWatch:
    """Looks at each call of one replay, and finds out when no later call can bring progress."""

    def __init__(self, scheduler: AnyScheduler) -> None:
        self.scheduler = scheduler
        self._since: int | None = None
        """The first step after the last progress."""
        self._still_since: int | None = None
        """The first of the steps in a row, up to now, in which nothing moved."""
        self._num_still = 0
        """Calls in these steps since the last event from outside: an arrival, an abort."""
        self._reached: dict[str, int] = {}
        """How far each prefill has come since a request last gained a token of output or left."""
        self._rounds = _Rounds()
        self.has_gained = True
        """Whether in the last call a request gained a token of output, or ended."""

    def after_call(
        self, step: int, decision: Decision, forward: Forward, *, moved: bool, outside: bool
    ) -> bool:
        """Look at a call, its forward, and everything that followed.

        Args:
            step: number of the step, for the begin of a hang.
            decision, forward: what the call decided, and what ran.
            moved: whether a request got its slot and blocks, joined, or gave them back before this call.
            outside: whether anything came from outside before this call: an arrival, an abort.

        Returns:
            Whether no later call can bring progress, unless something comes from outside.
        """
        if forward.num_decodes or forward.finished or moved or self._gains(decision, forward):
            if not self.has_gained:
                self._clear()
                self.has_gained = True
            return False
        self.has_gained = False
        if self.scheduler.idle:
            self._clear()
            return False
        if outside:
            self._num_still, self._rounds = 0, _Rounds()
        if self._comes_further(decision):
            self._clear(reached=False)
            return False
        if self._since is None:
            self._since = step
        if not (forward.num_tokens or decision.preempted or decision.extended):
            self._still_since = step if self._still_since is None else self._still_since
            self._num_still += 1
            return self._num_still >= (1 if self.scheduler.snapshot_is_whole else STILL_CALLS)
        self._still_since, self._num_still = None, 0
        if not self._rounds.came_back and (decision.preempted or decision.extended):
            needed = (
                1 if self.scheduler.snapshot_is_whole else _repeats_needed(self.scheduler.config, decision)
            )
            self._rounds.look(self.scheduler.snapshot(decision), decision.preempted, needed)
        return self._rounds.came_back

    def _gains(self, decision: Decision, forward: Forward) -> bool:
        """Whether a request gained a token of output in its prefill, or left."""
        if forward.started or decision.aborted or decision.errors:
            return True
        return bool(decision.preempted) and self.scheduler.config.role == "decode"

    def _comes_further(self, decision: Decision) -> bool:
        further = False
        for request_id, _, end in decision.chunks:
            if end > self._reached.get(request_id, 0):
                self._reached[request_id] = end
                further = True
        return further

    def _clear(self, *, reached: bool = True) -> None:
        self._since = self._still_since = None
        self._num_still = 0
        self._rounds = _Rounds()
        if reached:
            self._reached.clear()

    def hang(self, decision: Decision, forward: Forward) -> Hang:
        """The hang that `after_call` has just found, with its cause; both arguments are those of that call."""
        if self._still_since is not None:
            return Hang(self._still_since, cause_of(self.scheduler, decision, forward.stalled))
        assert self._since is not None
        return Hang(self._since, self._rounds.cause(self.scheduler, decision, forward.stalled))


class _Rounds:
    """Finds out whether states come back."""

    def __init__(self) -> None:
        self._reference: Hashable = None
        self._num_compared, self._replace_after, self._num_matches = 0, 1, 0
        self._previous: Hashable = None
        self._num_unchanged = 0
        self.came_back = False
        """Whether a state came back so often that everything goes round."""
        self.preempted: Counter[str] = Counter()
        """Preemptions of each request since the state that is kept."""

    def look(self, state: Hashable, preempted: Sequence[str], num_needed: int) -> None:
        """Compare a state with the kept one, which must come back `num_needed` times.

        If nothing was preempted, compare it with the previous state: it must stay the same so many times.
        """
        if not preempted:
            self._num_unchanged = self._num_unchanged + 1 if state == self._previous else 0
            self._previous = state
            self.came_back = self._num_unchanged >= num_needed
            return
        self._num_compared += 1
        self.preempted.update(preempted)
        self._num_matches += state == self._reference
        if self._num_matches >= num_needed:
            self.came_back = True
        elif self._num_compared >= self._replace_after:
            self._reference = state
            self._replace_after *= 2
            self._num_compared = self._num_matches = 0
            self.preempted.clear()

    def cause(self, scheduler: AnyScheduler, decision: Decision, stalled: Sequence[str]) -> str:
        """Why it goes round."""
        if not self.preempted:
            return (
                f"{_stall(stalled)}, and each call extends by {scheduler.config.enc_dec_block_num} "
                f"blocks (FD_ENC_DEC_BLOCK_NUM) ({_queues(scheduler, decision)})"
            )
        names = list(self.preempted)
        needed = sum(_prefill_blocks(scheduler, name) for name in names)
        requests = _listed(names)
        verb = "preempts itself" if len(names) == 1 else "preempt each other"
        need = "its prefill needs" if len(names) == 1 else "together their prefills need"
        return (
            f"{requests} {verb} again and again, and no request gains a token: {need} {needed:,} of "
            f"{scheduler.num_blocks:,} blocks ({_queues(scheduler, decision)})"
        )


def _repeats_needed(config: SchedulerConfig, decision: Decision) -> int:
    """How often a state must come back. A preemption resets the reserve; without one it may still decay in so many
    calls.
    """
    if decision.preempted:
        return REPEATS
    spans = (
        (config.reserve_blocks, config.reserve_decay),
        (config.init_new_token_ratio - config.min_new_token_ratio, config.new_token_ratio_decay),
    )
    return REPEATS + max(int(span / decay) if decay > 0 else 0 for span, decay in spans)


def _prefill_blocks(scheduler: AnyScheduler, request_id: str) -> int:
    """Blocks of all tokens that a request has."""
    return -(-scheduler.num_total_tokens_of(request_id) // scheduler.config.block_size)


def _listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = [printable(name, LONGEST_SHOWN) for name in names[:MOST_NAMES]]
    if len(names) > MOST_NAMES:
        return f"{', '.join(shown)} and {len(names) - MOST_NAMES} more"
    return " and ".join((", ".join(shown[:-1]), shown[-1])) if len(shown) > 1 else shown[0]


def _requests(count: int) -> str:
    return f"{count} request" if count == 1 else f"{count} requests"


def _stall(stalled: Sequence[str]) -> str:
    return f"{_requests(len(stalled))} {'stalls' if len(stalled) == 1 else 'stall'}"


def _queues(scheduler: AnyScheduler, decision: Decision) -> str:
    waiting = f"{decision.num_waiting} waiting" if decision.num_waiting else "none waiting"
    if scheduler.config.role != "mixed":
        waiting += f", {scheduler.num_asking} without a slot"
    return f"{_requests(decision.num_running)} running, {waiting}, {decision.num_free_blocks} blocks free"


def cause_of(scheduler: AnyScheduler, decision: Decision, stalled: Sequence[str]) -> str:
    """Why nothing moves, from the call that changed nothing, and the requests that its forward could not run."""
    state = _queues(scheduler, decision)
    if scheduler.num_asking and not decision.num_running:
        return f"{_asking(scheduler, decision)} ({state})"
    if scheduler.explains:
        return f"{_rule(scheduler, decision, stalled)} ({state})"
    budget = decision.token_budget
    parts = [f"the budget is {budget}"] if budget <= 0 and budget != MISSING else []
    if decision.lack is not None:
        parts.append(_lacking(scheduler, decision, decision.lack))
    if stalled:
        # Only FastDeploy's calls extend: in other engines a decode runs when a call gives it its token.
        gets = "gives none of them a token" if scheduler.keeps_rows else "extends none of them"
        parts.append(f"{_stall(stalled)}, and the call {gets}")
    reasons = "; ".join(parts) or "the scheduler hands nothing out and gives no reason"
    return f"{reasons} ({state})"


def _asking(scheduler: AnyScheduler, decision: Decision) -> str:
    """Why the next request gets no slot and no blocks, in the prefill and decode roles."""
    num_holding, blocks = scheduler.num_preallocated, scheduler.num_preallocated_blocks
    num_asked = scheduler.num_blocks_asked
    text = "the next request is given no slot and no blocks"
    if num_asked is not None and num_asked > scheduler.num_blocks:
        text += f": it asks for {num_asked:,} of {scheduler.num_blocks:,} blocks"
    elif num_asked is not None and num_asked > decision.num_free_blocks:
        text += f": it asks for {num_asked:,} blocks with {decision.num_free_blocks:,} free"
    elif num_holding >= scheduler.config.max_num_seqs:
        text += f": all {scheduler.config.max_num_seqs} slots are taken"
    if not num_holding:
        return f"{text}, and none will be freed"
    holds = "holds" if num_holding == 1 else "hold"
    return (
        f"{_requests(num_holding)} {holds} {blocks:,} of {scheduler.num_blocks:,} blocks and did not join; {text}, "
        "and none will be freed"
    )


def _lacking(scheduler: AnyScheduler, decision: Decision, lack: BlockShortage) -> str:
    """Which request has too few blocks: the head of the queue, or a running prefill."""
    name, total, reserved = (
        printable(lack.request_id, LONGEST_SHOWN),
        scheduler.num_blocks,
        lack.num_reserved_blocks,
    )
    reserve = f", {reserved:,} of them kept for the running requests" if reserved else ""
    num_prefill_blocks = _prefill_blocks(scheduler, lack.request_id)
    text = f"needs {lack.num_needed_blocks:,} of {total:,} blocks{reserve}"
    if num_prefill_blocks > total:
        text = f"needs {num_prefill_blocks:,} of {total:,} blocks"
    if scheduler.config.role == "decode":
        return f"the next request that joined lacks {decision.num_missing_blocks} blocks: {name} {text}"
    if lack.is_running:
        return f"the running prefill of {name} {text}"
    return f"the head of the queue, {name}, {text}"


def _rule(scheduler: AnyScheduler, decision: Decision, stalled: Sequence[str]) -> str:
    budget, reason = decision.token_budget, decision.not_admitted
    if budget <= 0:
        decodes = decision.num_running_decodes
        return (
            f"the budget is {budget} with {_requests(decodes)} decoding: the scheduling loop never runs, "
            f"no block table is extended, {_stall(stalled)}"
        )
    if stalled and (reason == "blocks" or decision.num_missing_blocks is None):
        return f"{_stall(stalled)}, and the call extends none of them with a budget of {budget}"
    if decision.skipped:
        return f"a budget of {budget} reaches no boundary that chunks align to"
    if reason == "budget" and not scheduler.config.chunked_prefill:
        return f"the next prompt is not chunked and is larger than the budget of {budget}"
    if decision.lack is not None:
        return f"{_lacking(scheduler, decision, decision.lack)}, and none will be freed"
    if reason == "formula":
        reason = "the formula does not admit the head of the queue"  # type: ignore[assignment]
    return f"nothing is decided with a budget of {budget} ({reason})"
