"""Packs what an adapter saw into frames of this process's ring. Inline, without a thread; the caller holds the lock."""

from __future__ import annotations

import json
import mmap
import time
from typing import Any, Callable, Iterable, NamedTuple

from . import ring as rings
from . import wire

ROOM_FOR_A_STEP = 128 * 1024
"""If a segment has less room than this, it is left between two steps: only there can a keyframe be written."""

IDLE_RESOLUTION_NS = 200_000_000
"""A run of idle calls is updated in the ring when its last frame is this old. At most so much is lost by a kill."""

EVENTS = {event: code for code, event in enumerate(wire.EVENTS)}
REASONS = {reason: code for code, reason in enumerate(wire.NOT_ADMITTED)}

PACK_SCHEDULE, PACK_FORWARD = wire.SCHEDULE_FRAME.pack, wire.FORWARD_FRAME.pack
PACK_TASKS = wire.TASKS_HEAD.struct.pack

PADDING = tuple(bytes(-size % 8) for size in range(8))
"""The bytes that fill a list up to a multiple of 8, by its size modulo 8."""

ITEM_CODES = {size: code for code, size in enumerate(wire.ITEM_SIZES)}


class KeyframeRow(NamedTuple):
    """A running request in a keyframe. `num_computed_tokens` are the tokens computed before its next step."""

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_cached_tokens: int
    num_output_tokens: int


class IdleCalls:
    """A run of equal scheduling calls that handed out nothing. `key`: reason, flags and figures, which are equal in all
    of them. `written_ts`: the `last_ts` of its last frame.
    """

    __slots__ = ("call", "key", "last_ts", "num_calls", "schedule_us", "ts", "written_ts")

    def __init__(self, key: tuple[int, int, tuple[int, ...]], schedule_us: int, call: int, ts: int) -> None:
        self.key, self.schedule_us, self.call = key, schedule_us, call
        self.ts = self.last_ts = self.written_ts = ts
        self.num_calls = 1


class Writer:
    """One recording of one process. `describe` returns the engine's row, `snapshot` the running rows, for keyframes.

    `attached_by`: how the agent came into the process, `armed` or `injected`: an event with the first keyframe.
    """

    def __init__(
        self,
        page: mmap.mmap,
        segments: int,
        segment_size: int,
        describe: Callable[[], dict[str, Any]],
        snapshot: Callable[[], Iterable[tuple[int, KeyframeRow]]],
        attached_by: str = "",
    ) -> None:
        self.page = page
        self.ring = rings.RingWriter(page, segments, segment_size)
        self.describe, self.snapshot = describe, snapshot
        self.numbers: dict[str, int] = {}
        self.arrived_steps: dict[str, int] = {}
        self.next_number = 0
        self.next_step = -1
        self.first_step = -1
        """The number of the first forward, where the adapter counts them itself."""
        self.ahead = 0
        """Forwards that are on their way: what an engine that schedules ahead meets now comes after them."""
        self.attached_by = attached_by
        self.blocks_packers: list[Callable[..., bytes]] = []
        """Packs a BLOCKS frame; the index is the number of its pairs."""
        self.idle: IdleCalls | None = None

    @property
    def has_keyframe(self) -> bool:
        """Whether the segment has its keyframe. Set to False: the next boundary writes another."""
        return not self.ring.is_fresh

    @has_keyframe.setter
    def has_keyframe(self, there: bool) -> None:
        self.ring.is_fresh = not there

    def boundary(self) -> None:
        """Between two steps: leave a segment that is nearly full, and begin each segment with the whole state."""
        ring = self.ring
        if ring.end - ring.offset < ROOM_FOR_A_STEP:
            ring.next_segment()
        if ring.is_fresh:
            ring.is_fresh = False
            self.engine(self.describe())
            self.batch((), self.snapshot(), wire.KEYFRAME)
            if self.attached_by:
                self.event("attached", reason=self.attached_by)
                self.attached_by = ""

    @property
    def room(self) -> int:
        """Bytes that are left in the segment."""
        return self.ring.end - self.ring.offset

    @property
    def coming_step(self) -> int:
        """The step of the call that comes next; -1 before the first forward is known."""
        step = self.next_step if self.next_step >= 0 else self.first_step
        return step + self.ahead if step >= 0 else -1

    def number(self, request_id: str) -> int:
        """This process's number of a request. It is new for an id that was not seen, or that has finished."""
        number = self.numbers.get(request_id)
        if number is None:
            number = self.numbers[request_id] = self.next_number
            self.next_number += 1
        return number

    def engine(self, row: dict[str, Any]) -> None:
        """The engine's row (columns of `recorder.schema.ENGINE`)."""
        text = json.dumps(row).encode()
        head = wire.EngineHead(wire.ENGINE, flags=0, unused=0, length=len(text))
        self.put(wire.ENGINE_HEAD.struct.pack(*head) + text)

    def request(
        self, request_id: str, ts: int, prompt: int, max_tokens: int, sent_at: int = -1,
        priority: int = wire.NO_PRIORITY,
    ) -> None:  # fmt: skip
        """A request that arrived. `ts` -1: it was there before the recording. `sent_at`: when the client sent it."""
        text = request_id.encode()
        step = self.coming_step if ts >= 0 else -1
        if ts >= 0:
            self.arrived_steps[request_id] = step
        head = wire.RequestHead(
            wire.REQUEST, flags=0, id_length=len(text), request=self.number(request_id), arrived_at=ts,
            arrived_step=step, num_prompt_tokens=prompt, max_tokens=max_tokens, sent_at=sent_at, priority=priority,
            unused=0,
        )  # fmt: skip
        self.put(wire.REQUEST_HEAD.struct.pack(*head) + text)

    def batch(
        self, vacated: Iterable[int], joined: Iterable[tuple[int, KeyframeRow]], flags: int = 0
    ) -> None:
        """Rows that became free, and rows that a request now holds."""
        vacated_rows = list(vacated)
        pieces = [b"".join(row.to_bytes(2, "little") for row in vacated_rows)]
        count = 0
        for row, request in joined:
            count += 1
            text = request.request_id.encode()
            head = wire.JoinedHead(
                row,
                id_length=len(text),
                request=self.number(request.request_id),
                num_prompt_tokens=request.num_prompt_tokens,
                max_tokens=request.max_tokens,
                num_computed_tokens=request.num_computed_tokens,
                num_blocks=request.num_blocks,
                num_cached_tokens=request.num_cached_tokens,
                num_output_tokens=request.num_output_tokens,
                arrived_step=self.arrived_steps.get(request.request_id, -1),
            )
            pieces += (wire.JOINED_HEAD.struct.pack(*head), text)
        batch = wire.BatchHead(
            wire.BATCH, flags, num_vacated=len(vacated_rows), num_joined=count, step=self.next_step
        )
        self.put(wire.BATCH_HEAD.struct.pack(*batch) + b"".join(pieces))

    def blocks(self, pairs: list[tuple[int, int]], extended: bool) -> None:
        """Blocks that the requests of some rows hold. `extended`: decodes to which the scheduler gave new blocks."""
        count = len(pairs)
        while count >= len(self.blocks_packers):
            self.blocks_packers.append(wire.blocks_frame(len(self.blocks_packers)).pack)
        flat: list[int] = []  # by a loop: with cold caches, `itertools.chain` takes as long as packing
        for pair in pairs:
            flat += pair
        self.put(self.blocks_packers[count](wire.BLOCKS, extended, 0, count, *flat))

    def schedule(
        self,
        call: int,
        ts: int,
        schedule_us: int,
        reason: str,
        figures: tuple[int, ...],
        flags: int = 0,
    ) -> None:
        """A scheduling call. `figures`: `wire.CallFigures`, or a plain tuple in its order: that is made four times as
        fast. `reason`: one of `wire.NOT_ADMITTED`; any other reason is written as "other".

        A call that handed out nothing and equals the call before it only increases a count. In the ring, such a run is
        exact up to its last frame, which is at most `IDLE_RESOLUTION_NS` old. Before anything else is written, the
        run's last frame is.
        """
        code = REASONS.get(reason, wire.OTHER)
        if not flags & wire.EMPTY:
            if self.idle is not None:
                self.end_idle()
            # In the order of `wire.ScheduleHead`. To build one here would take a tenth of the time of a step.
            self.ring.write(PACK_SCHEDULE(wire.SCHEDULE, code, flags, schedule_us, call, ts, ts, 1, *figures))
            return
        key, idle = (code, flags, figures), self.idle
        if idle is None or idle.key != key:
            self.end_idle()
            idle = self.idle = IdleCalls(key, schedule_us, call, ts)
            self._write_idle(idle)
            return
        idle.num_calls += 1
        idle.last_ts = ts
        if ts - idle.written_ts >= IDLE_RESOLUTION_NS:
            self._write_idle(idle)

    def end_idle(self) -> None:
        """Something follows a run of idle calls: write the run's count and end."""
        idle = self.idle
        if idle is not None:
            if idle.written_ts != idle.last_ts:
                self._write_idle(idle)
            self.idle = None

    def _write_idle(self, idle: IdleCalls) -> None:
        idle.written_ts = idle.last_ts
        code, flags, figures = idle.key
        frame = PACK_SCHEDULE(  # in the order of `wire.ScheduleHead`
            wire.SCHEDULE, code, flags, idle.schedule_us, idle.call, idle.ts, idle.last_ts, idle.num_calls, *figures
        )  # fmt: skip
        self.ring.write(frame)

    def forward(
        self,
        step: int,
        call: int,
        ts: int,
        forward_us: int,
        predicted: int,
        memory: wire.AllocatorFigures,
        prefills: bytes,
        stalled: bytes,
        tokens: Any,
        emitted: Any,
        flags: int = 0,
    ) -> None:
        """One forward. `tokens` and `emitted`: signed integers, one a row, as contiguous arrays of one dimension, of
        `array` or NumPy. Lists of rows are `uint16`.
        """
        if self.idle is not None:
            self.end_idle()
        if self.next_step < 0:
            self.ring.first_forward(step, ts)
        rows, token_size, emitted_size = len(tokens), tokens.itemsize, emitted.itemsize
        num_prefill, num_stalled = len(prefills), len(stalled)
        head = PACK_FORWARD(  # in the order of `wire.ForwardHead`
            wire.FORWARD, ITEM_CODES[token_size] | ITEM_CODES[emitted_size] << 4 | flags,
            rows, num_prefill >> 1, num_stalled >> 1, step, call, ts, forward_us, predicted, *memory,
        )  # fmt: skip
        after_lists, after_tokens = PADDING[num_prefill + num_stalled & 7], PADDING[rows * token_size & 7]
        self.ring.write(b"".join((head, prefills, stalled, after_lists, tokens, after_tokens, emitted)))
        self.next_step = step + 1

    def tasks(self, call: int, token: int) -> None:
        """The tasks of a scheduling call have reached this worker."""
        self.put(PACK_TASKS(wire.TASKS, 0, 0, 0, call, token))  # in the order of `wire.TasksHead`

    def memory(
        self,
        rank: int,
        call: int,
        since: int,
        ts: int,
        memory: wire.AllocatorFigures,
        forward_us: int = -1,
        launched: int = -1,
    ) -> None:
        """The allocator of a rank after a forward: number `since` of the forwards that follow `call`."""
        head = wire.MemoryHead(
            wire.MEMORY, 0, rank, since=since, call=call, ts=ts, forward_us=forward_us,
            num_predicted_tokens=launched,
        )  # fmt: skip
        self.put(wire.MEMORY_FRAME.pack(*head, *memory))

    def hashes(self, request_id: str, block_size: int, hashes: list[bytes]) -> None:
        """Hashes of the full blocks of a request's prompt, 8 bytes each."""
        number = self.number(request_id)
        head = wire.HashesHead(
            wire.HASHES, 0, 0, request=number, num_hashes=len(hashes), block_size=block_size
        )
        self.put(wire.HASHES_HEAD.struct.pack(*head) + b"".join(hashes))

    def event(
        self, kind: str, request_id: str | None = None, reason: str = "", detail: dict[str, Any] | None = None
    ) -> None:
        """An event at the next step."""
        why, more = reason.encode(), json.dumps(detail).encode() if detail else b""
        number = -1 if request_id is None else self.number(request_id)
        head = wire.EventHead(
            wire.EVENT,
            EVENTS[kind],
            reason_length=len(why),
            detail_length=len(more),
            request=number,
            unused=0,
            step=self.coming_step,
            ts=time.time_ns(),
        )
        self.put(wire.EVENT_HEAD.struct.pack(*head) + why + more)

    def finish(self, request_id: str, reason: str, num_output_tokens: int) -> None:
        """A request ended in the last step that was forwarded."""
        number = self.number(request_id)
        code = wire.FINISHED.index(reason) if reason in wire.FINISHED else len(wire.FINISHED) - 1
        step = self.next_step - 1 if self.next_step >= 0 else -1
        head = wire.FinishHead(
            wire.FINISH, code, 0, request=number, step=step, ts=time.time_ns(), num_output_tokens=num_output_tokens,
            unused_2=0,
        )  # fmt: skip
        self.put(wire.FINISH_HEAD.struct.pack(*head))
        del self.numbers[request_id]
        self.arrived_steps.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """This process has nothing more to say about a request. If it comes back, it gets a new number."""
        self.numbers.pop(request_id, None)

    def close(self) -> None:
        """Close the ring: no frame follows."""
        self.end_idle()
        self.ring.close()
        self.ring.release()
        self.page.close()  # the mapping has a descriptor of its own

    def put(self, payload: bytes, *, ends_idle: bool = True) -> None:
        """Write a frame. `ends_idle`: idle calls that come later are another run."""
        if ends_idle and self.idle is not None:
            self.end_idle()
        self.ring.write(payload)
