"""When a replay hangs: requests are there, and no call to come brings one of them any further.

Theory. A call and its forward make **progress** when one of these happens:

1. A decode runs, or a prefill completes: a request gains a token of output, which no preemption takes away again.
2. A request ends, or leaves: it finished, was aborted, or (decode role) was preempted for good.
3. A prefill comes further than it has been since the last progress of the first two kinds. A preempted request
   computes its tokens anew; until it is past where it once was, that is no progress.
4. A request gets its slot and blocks before it runs, joins, or gives them back (prefill and decode roles).

An arrival or an abort that is handed over is none by itself: what it changes is progress when it comes.

Every request has finitely many tokens and ends once, so a workload has finitely many steps with progress: one that
never ends has a last one. From there on two things can happen.

- **Nothing moves**: a call hands nothing out and its forward runs nothing. The scheduler is then in the state that it
  was in before, and as nothing else changes it, every later call decides the same.
- **It goes round**: calls go on preempting, and what was computed is computed anew (a livelock), or decodes are given
  0 blocks again and again. To lose what it computed a request must be preempted, so each round has a call that
  preempts (or one that extends by nothing). The states after such calls are compared, by Brent's method: one is kept,
  and replaced after 1, 2, 4, 8 … of them. The scheduler is deterministic, so once a state comes back, all that lies
  between the two comes back for ever.

So there is no false alarm: a storm of preemptions in which every round completes a prefill makes progress, however
long it takes, and one that makes none for a while is no hang before its state has come back. The state of the model is
compared whole (`Scheduler.snapshot`). Of an engine's real scheduler, and of the prefix cache, only a part is seen:
then it must come back `REPEATS` times, and where nothing is preempted, long enough for a reserve that decays to have
come to its end.

A hang is one only if nothing is still to come from outside; that is for whoever runs the workload to say. It began
with the first call that moved nothing, or, of a round, with the first call after the last progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from fdtrace.recorder.printable import printable
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.history.history import Hang
from fdtrace.replayer.model.events import Decision, Forward, Lack
from fdtrace.replayer.replay.any_scheduler import AnyScheduler

REPEATS = 4
"""How often a state that is not seen whole must come back."""

STILL_CALLS = 3
"""Calls in a row that move nothing, where the state is not seen whole: a prefix cache evicts in the first of them."""

MOST_NAMES, LONGEST_SHOWN = 3, 60
"""Requests named in a cause, and characters of each."""


class HangWatch:
    """Looks at each call of one replay, and finds out when no later one can bring progress."""

    def __init__(self, scheduler: AnyScheduler) -> None:
        self.scheduler = scheduler
        self._since: int | None = None
        """The first step after the last progress."""
        self._still_since: int | None = None
        """The first step of those, up to now, in which nothing moved."""
        self._num_still = 0
        """Calls of those, since anything came from outside."""
        self._reached: dict[str, int] = {}
        """How far each prefill has come since a request last gained a token of output or left."""
        self._rounds = _Rounds()
        self.has_gained = True
        """Whether the last call brought a request further by a token of output, or an end."""

    def after_call(
        self, step: int, decision: Decision, forward: Forward, *, moved: bool, outside: bool
    ) -> bool:
        """Look at a call, its forward, and all that followed.

        Args:
            step: number of the step, by which a hang is dated.
            decision, forward: what the call decided, and what ran.
            moved: whether a request got its slot and blocks, joined, or gave them back before this call.
            outside: whether anything came from outside before this call: an arrival, an abort.

        Returns:
            Whether no call to come can bring progress, unless something comes from outside.
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
        """The hang that `after_call` has just found, with its cause, from that call and its forward."""
        if self._still_since is not None:
            return Hang(self._still_since, cause_of(self.scheduler, decision, forward.stalled))
        assert self._since is not None
        return Hang(self._since, self._rounds.cause(self.scheduler, decision, forward.stalled))


class _Rounds:
    """Finds out whether states come back."""

    def __init__(self) -> None:
        self._kept: Hashable = None
        self._looked, self._keep_after, self._matches = 0, 1, 0
        self._last: Hashable = None
        self._stayed = 0
        self.came_back = False
        """Whether a state came back, so often that all goes round."""
        self.preempted: Counter[str] = Counter()
        """Preemptions of each request since the state that is kept."""

    def look(self, state: Hashable, preempted: Sequence[str], needed: int) -> None:
        """Compare a state with the one that is kept, which must come back `needed` times.

        Where nothing was preempted, with the one before: it must stay as often.
        """
        if not preempted:
            self._stayed = self._stayed + 1 if state == self._last else 0
            self._last = state
            self.came_back = self._stayed >= needed
            return
        self._looked += 1
        self.preempted.update(preempted)
        self._matches += state == self._kept
        if self._matches >= needed:
            self.came_back = True
        elif self._looked >= self._keep_after:
            self._kept = state
            self._keep_after *= 2
            self._looked = self._matches = 0
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
        who = _listed(names)
        what = "preempts itself" if len(names) == 1 else "preempt each other"
        whose = "its prefill needs" if len(names) == 1 else "together their prefills need"
        return (
            f"{who} {what} again and again, and no request gains a token: {whose} {needed:,} of "
            f"{scheduler.num_blocks:,} blocks ({_queues(scheduler, decision)})"
        )


def _repeats_needed(config: SchedulerConfig, decision: Decision) -> int:
    """A preemption sets the reserve anew; without one it may decay for so many calls yet."""
    if decision.preempted:
        return REPEATS
    spans = (
        (config.reserve_blocks, config.reserve_decay),
        (config.init_new_token_ratio - config.min_new_token_ratio, config.new_token_ratio_decay),
    )
    return REPEATS + max(int(most / each) if each > 0 else 0 for most, each in spans)


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
    parts = []
    if decision.lack is not None:
        parts.append(_lacking(scheduler, decision, decision.lack))
    if stalled:
        parts.append(f"{_stall(stalled)}, and the call extends none of them")
    why = "; ".join(parts) or "the scheduler hands nothing out and gives no reason"
    return f"{why} ({state})"


def _asking(scheduler: AnyScheduler, decision: Decision) -> str:
    """Why the next request is given no slot and no blocks, in the prefill and decode roles."""
    held, blocks = scheduler.num_preallocated, scheduler.num_preallocated_blocks
    needs = scheduler.num_blocks_asked
    what = "the next request is given no slot and no blocks"
    if needs is not None and needs > scheduler.num_blocks:
        what += f": it asks for {needs:,} of {scheduler.num_blocks:,} blocks"
    elif needs is not None and needs > decision.num_free_blocks:
        what += f": it asks for {needs:,} blocks with {decision.num_free_blocks:,} free"
    elif held >= scheduler.config.max_num_seqs:
        what += f": all {scheduler.config.max_num_seqs} slots are taken"
    if not held:
        return f"{what}, and none will be freed"
    holds = "holds" if held == 1 else "hold"
    return (
        f"{_requests(held)} {holds} {blocks:,} of {scheduler.num_blocks:,} blocks and did not join; {what}, and none "
        "will be freed"
    )


def _lacking(scheduler: AnyScheduler, decision: Decision, lack: Lack) -> str:
    """Which request has too few blocks: the head of the queue, or a running prefill."""
    name, total, reserved = (
        printable(lack.request_id, LONGEST_SHOWN),
        scheduler.num_blocks,
        lack.num_reserved_blocks,
    )
    kept = f", {reserved:,} of them kept for the running requests" if reserved else ""
    whole = _prefill_blocks(scheduler, lack.request_id)
    text = f"needs {lack.num_needed_blocks:,} of {total:,} blocks{kept}"
    if whole > total:
        text = f"needs {whole:,} of {total:,} blocks"
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
    return f"nothing is decided with a budget of {budget} ({reason})"
