"""Replays a recording in the order in which its engine met its events.

A deployment schedules ahead of its forwards: the decision of a call depends on what the engine knew by then. Under the
recorded formula and policy, a replay takes queue events and calls as they were recorded, one after another, and the
model decides each call again. If it decides a call differently, the model or the recording is wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fdtrace.replayer.history.history import CallDeparture
from fdtrace.replayer.model.events import (
    Decision,
    DecodeTokenCounts,
    Notification,
    Rescheduled,
    Resumed,
    Schedule,
)
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.replay.any_scheduler import OrderedScheduler

CALLS_SHOWN = 2
"""A departure is shown with the events of so many calls before it."""


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call of `schedule()`: what it decided, and what it read of the state that changes without its lock.

    `chunks` are (request, first token, end token). `known`: prompt and output tokens of the decodes whose count has
    changed since the call before. The other counts are those after the call.
    """

    call: int
    chunks: tuple[tuple[str, int, int], ...] = ()
    extended: tuple[str, ...] = ()
    preempted: tuple[str, ...] = ()
    aborted: tuple[str, ...] = ()
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    known: Mapping[str, int] = field(default_factory=dict)
    not_ready: frozenset[str] = frozenset()
    failed: frozenset[str] = frozenset()
    needed_blocks: tuple[int, ...] = ()

    def schedule(self) -> Schedule:
        """The event of this call."""
        return Schedule(self.not_ready, self.failed, self.needed_blocks)

    @property
    def text(self) -> str:
        """The call in words: what it did, and the queues after it."""
        actions = [f"chunk {name} {start} to {end}" for name, start, end in self.chunks]
        lists = {"extended": self.extended, "preempted": self.preempted, "aborted": self.aborted}
        lists |= {"skipped": tuple(sorted(self.not_ready)), "failed": tuple(sorted(self.failed))}
        actions += [f"{name} {' '.join(names)}" for name, names in lists.items() if names]
        after = f"{self.num_running} run, {self.num_waiting} wait, {self.num_free_blocks} blocks free"
        return f"call {self.call}: {', '.join(actions) or 'nothing'}; {after}"

    def differences(self, decision: Decision) -> tuple[tuple[str, object, object], ...]:
        """What a replay decided differently: name, recorded, replayed."""
        pairs = (
            ("chunks", list(self.chunks), decision.chunks),
            ("extended", list(self.extended), decision.extended),
            ("preempted", list(self.preempted), decision.preempted),
            ("aborted", list(self.aborted), decision.aborted),
            ("running", self.num_running, decision.num_running),
            ("waiting", self.num_waiting, decision.num_waiting),
            ("free blocks", self.num_free_blocks, decision.num_free_blocks),
            ("reserves unlike those recorded", 0, decision.num_reserve_faults),
        )
        return tuple(pair for pair in pairs if pair[1] != pair[2])


RecordedEvent = Notification | RecordedCall


@dataclass(frozen=True, slots=True)
class CallComparison:
    """One call of a replay beside the recorded one; `decision` is None if the model could not go on."""

    recorded: RecordedCall
    decision: Decision | None
    differences: tuple[tuple[str, object, object], ...]


class OrderedReplay:
    """Takes a recording's events in their order. `calls` decides one call after another.

    After a departure the replay goes on with its own state, and the recording corrects nothing. So a state that differs
    stays different until later events make it equal again. Events that its state does not allow are left out.
    """

    def __init__(self, scheduler: OrderedScheduler, events: Iterable[RecordedEvent]) -> None:
        self.scheduler = scheduler
        self._events = iter(events)
        self.num_calls = self.num_equal = self.num_left_out = 0
        self.departure: CallDeparture | None = None
        self._recent: deque[RecordedEvent] = deque()
        self._recent_calls = 0

    def run(self) -> None:
        """Decide all calls."""
        for _ in self.calls():
            pass

    def calls(self) -> Iterator[CallComparison]:
        """Yield each call after it is decided."""
        for event in self._events:
            if not isinstance(event, RecordedCall):
                self._take(event)
            else:
                yield self._decide(event)
            self._remember(event)

    def _take(self, event: Notification) -> None:
        try:
            self.scheduler.apply(event)
        except KeyError:
            self.num_left_out += 1

    def _decide(self, call: RecordedCall) -> CallComparison:
        scheduler = self.scheduler
        if call.known:
            scheduler.apply(DecodeTokenCounts(call.known))
        self.num_calls += 1
        try:
            decision = scheduler.apply(call.schedule())
        except SchedulerFailed as failure:
            compared: CallComparison = CallComparison(
                call, None, (("the scheduler", "went on", str(failure)),)
            )
        else:
            compared = CallComparison(call, decision, call.differences(decision))
        self.num_equal += not compared.differences
        if compared.differences and self.departure is None:
            self.departure = CallDeparture(
                call.call,
                tuple(
                    (name, str(recorded), str(replayed)) for name, recorded, replayed in compared.differences
                ),
                tuple(map(event_text, self._recent)),
                ()
                if compared.decision is None
                else tuple(reason.text for reason in compared.decision.reasons),
            )
        return compared

    def _remember(self, event: RecordedEvent) -> None:
        self._recent.append(event)
        if isinstance(event, RecordedCall):
            self._recent_calls += 1
            while self._recent_calls > CALLS_SHOWN:
                self._recent_calls -= isinstance(self._recent.popleft(), RecordedCall)
            while not isinstance(self._recent[0], RecordedCall):
                self._recent.popleft()


def event_text(event: RecordedEvent) -> str:
    """An event in words."""
    if isinstance(event, RecordedCall):
        return event.text
    if isinstance(event, DecodeTokenCounts):
        return ", ".join(f"{name} has {tokens} tokens" for name, tokens in event.num_total_tokens.items())
    request = event.arrived if isinstance(event, Resumed) else event
    name = getattr(request, "request_id", "")
    return f"{type(event).__name__} {name}".strip()


def rescheduled(request_id: str, num_total_tokens: int) -> tuple[Notification, ...]:
    """The events of a preempted request that comes back, with all tokens of the forwards that were still running."""
    return DecodeTokenCounts({request_id: num_total_tokens}), Rescheduled(request_id)
