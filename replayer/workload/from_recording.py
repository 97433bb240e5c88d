"""The workload that a recording holds: its requests, when they arrived, what they accepted, where they ended."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.column_values import MISSING, NO_PRIORITY
from fdtrace.recorder.trace.initial_state import InitialRequest, StateAtStart
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import SchedulerConfig, is_modelled
from fdtrace.replayer.model.events import Resumed
from fdtrace.replayer.recorded.client_times import delays_to_call, sending_times
from fdtrace.replayer.recorded.only_sums import refuse_only_sums
from fdtrace.replayer.recorded.step_durations import (
    BY_CALLS,
    BY_STEPS,
    Clock,
    ClockKind,
    call_times,
    fit_durations,
)
from fdtrace.replayer.workload.block_contents import Blocks, Prefixes, cached_chains
from fdtrace.replayer.workload.request_columns import RequestColumns
from fdtrace.replayer.workload.workload import BlockKey, Workload, WorkRequest, compact

STEPS_FACTOR, STEPS_MORE = 10, 10_000
"""A replay is endless if it takes more than `STEPS_FACTOR` times the recorded steps plus `STEPS_MORE`."""


ONE_OF_TWO = (
    "a deployment's {} instance was recorded, and is replayed in lockstep: a forward follows each call, and the next "
    "call knows its output. The pipeline of two instances is not modelled: compare such replays with each other"
)


def workload_from_recording(recording: Recording, clock: ClockKind = "steps") -> Workload:
    """Every recorded request, with arrivals by recorded step or time. TraceError if nothing was recorded, UsageError if
    the recording has no times and `clock` is "time", or if only sums are known of it.

    If the recording ended before a request did, the request gets output up to its `max_tokens` (without one, up to the
    model's length), and the number of tokens that it had made as `target`. An aborted request is aborted at the
    recorded step.
    """
    refuse_only_sums(recording)
    if recording.num_steps == 0:
        raise TraceError("this recording holds no step, so there is nothing to replay")
    config = SchedulerConfig.from_engine(recording.engine)
    times = call_times(recording) if clock == "time" else None
    reader = _Reader(recording, config, times)
    entries = (i for i in range(len(recording.details.endings.finished_step)) if not reader.ran_before(i))
    first = sorted(reader.rank, key=reader.rank.__getitem__)
    order = [*first, *sorted((i for i in entries if i not in reader.rank), key=reader.arrival)]
    reader.read_prefixes(order)
    order.sort(key=lambda i: -1 if i in reader.initial else reader.arrival(i))
    requests = RequestColumns(map(reader.request, order))
    steps = recording.num_steps
    return Workload(
        config,
        requests,
        max_steps=steps * STEPS_FACTOR + STEPS_MORE,
        first_step=int(recording.steps["step"][0]),
        expected_steps=steps,
        clock=reader.clock if times is None else Clock("time", fit_durations(recording)),
        cached=tuple(map(tuple, (*reader.found_chains(), *reader.prefixes.cached))),
        admits_new=reader.found.admits_new,
        notes=()
        if config.role == "mixed" or recording.details.order is None
        else (ONE_OF_TWO.format(config.role),),
    )


class _Reader:
    """Reads one recording's requests."""

    def __init__(
        self, recording: Recording, config: SchedulerConfig, times: NDArray[np.int64] | None
    ) -> None:
        self.recording, self.config, self.times = recording, config, times
        self.steps = np.asarray(recording.steps["step"], dtype=np.int64)
        details, modelled = recording.details, is_modelled(recording.engine)
        self.modelled = modelled
        self.endings, self.acceptance = details.endings, details.acceptance
        self.restarts = {} if modelled else details.row_scan.restarts
        queued = () if modelled else details.row_scan.queued
        self.queued = {first.request for first in queued}
        there = [first for first in details.initial if first.request not in self.queued]
        numbers = np.asarray(recording.requests["request"], dtype=np.int64).tolist()
        self.accepts = compact(self.acceptance.num_accepted)
        self.initial = {numbers.index(first.request): first for first in (*there, *queued)}
        self.rank = {entry: i for i, entry in enumerate(self.initial)}
        self.after_idle = _after_idle(recording)
        self.sent = (
            None
            if times is None or "arrived_at" not in recording.requests
            else sending_times(recording.requests)
        )
        self.delays = None if self.sent is None else delays_to_call(recording)
        self.handover = details.handover if modelled else None
        self.calls = None if self.handover is None or times is not None else self.handover.calls
        self.clock = BY_STEPS if self.calls is None else BY_CALLS
        self.hashes: Any = details.block_hashes
        self.found = StateAtStart() if modelled else details.row_scan.found
        self.prefixes = Prefixes(held=frozenset(self.found.cached_blocks))
        self.knows_prefixes = not modelled and self.hashes is not None

    def found_chains(self) -> list[list[Hashable]]:
        """Chains of the blocks that the recorder found in the prefix cache."""
        if not self.knows_prefixes:
            return []
        prompts = ([int(value) for value in one] for one in self.hashes if one is not None)
        return cached_chains(self.found.cached_blocks, self.found.num_cached_blocks, prompts)

    def read_prefixes(self, order: Sequence[int]) -> None:
        """If the engine caches outputs too: find out what the blocks of the requests held, in order of arrival."""
        if self.knows_prefixes:
            self.prefixes.feed([self._blocks(i) for i in order])

    def _blocks(self, i: int) -> Blocks:
        initial, size = self.initial.get(i), self.config.block_size
        num_cached = max(0, self._value("num_cached_tokens", i))
        if initial is not None:
            num_cached = initial.num_computed_tokens if initial.request in self.queued else 0
        num_output = max(0, self._value("num_output_tokens", i))
        num_filled = max(0, self._value("num_prompt_tokens", i) + num_output - 1) // size if num_output else 0
        end_step = int(self.endings.finished_step[i])
        return Blocks(
            entry=i,
            hashes=[] if self.hashes[i] is None else [int(value) for value in self.hashes[i]],
            num_found=num_cached // size,
            num_filled=num_filled,
            begins=max(0, self._value("arrived_step", i)),
            ends=None if end_step == MISSING else end_step,
        )

    def _value(self, name: str, i: int) -> int:
        values = self.recording.requests.get(name)
        return MISSING if values is None else int(values[i])

    def _priority(self, i: int) -> int:
        values = self.recording.requests.get("priority")
        return NO_PRIORITY if values is None else int(values[i])

    def _index(self, step: int) -> int:
        """A step's number as steps since the first; a number between two steps counts as the later step."""
        return int(np.searchsorted(self.steps, step))

    def _at(self, step: int) -> int:
        """A step's number on the clock: steps since the first, or microseconds."""
        index = self._index(step)
        if self.times is None:
            return index
        return int(self.times[min(index, len(self.times) - 1)] - self.times[0]) // 1000

    def arrival(self, i: int) -> int:
        """When a request arrived, on the clock; 0 if it was there before the recording."""
        if self.times is not None and self.sent is not None and self.sent[i] != MISSING:
            return max(0, int(self.sent[i]) + self._delay(i) - int(self.times[0])) // 1000
        if self.calls is not None:
            return int(self.calls.arrived[i])
        arrived = self._value("arrived_step", i)
        return 0 if arrived == MISSING else self._at(arrived)

    def _delay(self, i: int) -> int:
        """How long a request was on its way to a call that could see it, ns."""
        return 0 if self.delays is None else int(self.delays[i])

    def ran_before(self, i: int) -> bool:
        """Whether all that a request ran came before the first recorded step, in which only its end was recorded."""
        endings = self.endings.finished_step[i], self.endings.aborted_step[i]
        before = i not in self.rank and self._value("arrived_step", i) == MISSING
        return not self.modelled and before and endings[0] != MISSING == endings[1]

    def request(self, i: int) -> WorkRequest:
        recording = self.recording
        initial = self.initial.get(i)
        prompt = self._value("num_prompt_tokens", i)
        if prompt == MISSING:
            prompt = max(1, initial.num_computed_tokens) if initial is not None else 1
        finished, aborted = int(self.endings.finished_step[i]), int(self.endings.aborted_step[i])
        wanted = self._abort_wanted(i)
        ended = finished != MISSING and aborted == MISSING and not self._cut_short(i)
        output, target = self._output(i, prompt, ended=ended)
        arrival = self.arrival(i)
        forwards, verified = self.acceptance.forwards(i), self.acceptance.num_verified
        request = WorkRequest(
            request_id=str(recording.requests["request_id"][i]),
            arrival=arrival,
            num_prompt_tokens=prompt,
            num_output_tokens=output,
            accepts=self.accepts[forwards],
            drafts=None if verified is None else verified[forwards],
            max_tokens=None if (max_tokens := self._value("max_tokens", i)) == MISSING else max_tokens,
            abort_after=None if wanted is None else max(0, wanted - arrival),
            on_its_way=self._delay(i) // 1000,
            block_key=self._block_key(i),
            target=None if wanted is not None else target,
            restarts=self.restarts.get(i, ()),
            after_idle=bool(self.after_idle[i]),
            priority=None if (priority := self._priority(i)) == NO_PRIORITY else priority,
            **self._other_instance(i),
        )
        if initial is None:
            return request
        if is_modelled(recording.engine):
            return _with_resumed(request, _resumed(request, initial))
        waiting = initial.request in self.queued
        return _with_resumed(request, _resumed_anew(request, initial, waiting=waiting))

    def _abort_wanted(self, i: int) -> int | None:
        """When a client aborted a request, on the clock; None: never."""
        if self.calls is not None:
            aborted = int(self.calls.aborted[i])
            return None if aborted == MISSING else aborted
        wanted = self.endings.abort_step(i)
        return None if wanted == MISSING else self._at(wanted)

    def _cut_short(self, i: int) -> bool:
        """Whether a decode instance preempted it: there it ends with error 502, however much output it had left to
        make.
        """
        reasons, handover = self.recording.requests.get("finish_reason"), self.handover
        if reasons is None or handover is None or self.config.role != "decode":
            return False
        return bool(reasons[i] == "error" and handover.discarded[i] == MISSING)

    def _other_instance(self, i: int) -> dict[str, Any]:
        """What the other instance of a deployment in roles did, if this recording has it.

        What had not happened when the recording ended happens after its last step.
        """
        if self.handover is None:
            return {}
        preallocated, joined, discarded, last_ran, finished, end = self._handed_over(i)
        arguments: dict[str, Any] = {"discarded": joined is None and discarded is not None}
        if preallocated is not None:
            until = next((at for at in (joined, discarded) if at is not None), end)
            arguments["join_after"] = max(0, until - preallocated)
        if self.config.role == "prefill" and last_ran is not None:
            arguments["send_after"] = max(0, (end if finished is None else finished) - last_ran)
        return arguments

    def _handed_over(self, i: int) -> tuple[int | None, int | None, int | None, int | None, int | None, int]:
        """When a request got its blocks, joined, was discarded, ran last, and finished, on the clock (None: never); and
        when the recording ended.
        """
        steps, calls = self.handover, self.calls
        assert steps is not None
        one = calls or steps
        finished = self.endings.finished_step if calls is None else calls.finished
        values = (one.preallocated, one.joined, one.discarded, one.last_ran, finished)

        def at(value: int) -> int:
            return self._at(value) if calls is None else value

        moments = [None if value[i] == MISSING else at(int(value[i])) for value in values]
        preallocated, joined, discarded, last_ran, finishes = moments
        end = at(int(self.steps[-1]) + 1) if calls is None else calls.end
        return preallocated, joined, discarded, last_ran, finishes, end

    def _output(self, i: int, prompt: int, ended: bool) -> tuple[int, int | None]:
        """Output tokens at which the request ends; and its output so far if the recording does not have its end, else
        None.
        """
        num_made = max(0, self._value("num_output_tokens", i))
        if ended:
            return max(1, num_made), None
        max_tokens = self._value("max_tokens", i)
        return max(
            1, num_made, self.config.max_model_len - prompt if max_tokens == MISSING else max_tokens
        ), num_made

    def _block_key(self, i: int) -> BlockKey | None:
        if self.knows_prefixes:
            return partial(self.prefixes.key, i)
        hashes = None if self.hashes is None else self.hashes[i]
        if hashes is None or len(hashes) == 0:
            return None
        prompt_hashes = [int(value) for value in hashes]

        def key(block: int) -> Hashable:
            return prompt_hashes[block] if block < len(prompt_hashes) else (i, block)

        return key


def _after_idle(recording: Recording) -> NDArray[np.bool_]:
    """Whether each request arrived when all earlier requests had ended, by the recorded times."""
    columns = recording.requests
    if "arrived_at" not in columns or "finished_at" not in columns:
        return np.zeros(len(recording.details.endings.finished_step), dtype=bool)
    arrived, finished = np.asarray(columns["arrived_at"]), np.asarray(columns["finished_at"])
    num_arrived_before = np.searchsorted(np.sort(arrived), arrived)
    num_finished_before = np.searchsorted(np.sort(finished[finished != MISSING]), arrived)
    return np.asarray((arrived != MISSING) & (num_arrived_before == num_finished_before), dtype=bool)


def _resumed(request: WorkRequest, initial: InitialRequest) -> Resumed:
    """The state in which its first recorded step found it. A decode's computed tokens include the last sampled one."""
    num_emitted = max(0, initial.num_computed_tokens - request.num_prompt_tokens) if initial.decoding else 0
    computed = min(initial.num_computed_tokens, request.num_prompt_tokens)
    return Resumed(
        request.arrived(), computed, initial.num_blocks, num_emitted, decoding=bool(initial.decoding)
    )


def _resumed_anew(request: WorkRequest, initial: InitialRequest, *, waiting: bool) -> Resumed:
    """The same for a request that may have lost its blocks: then its prefill also covers its earlier output."""
    return Resumed(
        request.arrived(),
        initial.num_computed_tokens,
        initial.num_blocks,
        _num_emitted(request, initial),
        decoding=bool(initial.decoding),
        waiting=waiting,
        num_prefill_tokens=None if initial.num_prefill_tokens == MISSING else initial.num_prefill_tokens,
        num_in_flight_tokens=initial.num_in_flight_tokens,
        num_offloaded_tokens=initial.num_offloaded_tokens,
        num_offloaded_blocks=initial.num_offloaded_blocks,
    )


def _num_emitted(request: WorkRequest, initial: InitialRequest) -> int:
    """The output tokens of a request that was there when the recording began, at that time."""
    if initial.num_output_tokens != MISSING:
        return initial.num_output_tokens
    if initial.decoding:
        return max(0, initial.num_computed_tokens - request.num_prompt_tokens)
    num_made = initial.num_total_tokens - 1
    if initial.num_total_tokens == MISSING:  # it ended with the token of this prefill
        made_all = request.target is None and request.abort_after is None
        num_made = request.num_prompt_tokens + (request.num_output_tokens - 1 if made_all else 0)
    # Each time it was preempted before it decoded, it had sampled one more token.
    return max(0, num_made - request.num_prompt_tokens - request.restarts.count(0))


def _with_resumed(request: WorkRequest, resumed: Resumed) -> WorkRequest:
    return request._replace(resumed=resumed)
