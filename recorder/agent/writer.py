"""Packs what an adapter saw into frames of this process's ring. Inline, no thread; the caller holds the lock."""

from __future__ import annotations

import json
import mmap
import time
from typing import Any, Callable, Iterable, NamedTuple

from . import ring as rings
from . import wire

ROOM_FOR_A_STEP = 128 * 1024
"""A segment with less room than this is left at a step's boundary, where a keyframe can be written."""


class Row(NamedTuple):
    """What a keyframe says of a running request; `num_computed_tokens` are those before its next step."""

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    num_computed_tokens: int
    num_blocks: int
    num_cached_tokens: int
    num_output_tokens: int


class Writer:
    """One recording of one process. `describe` gives the engine's row, `snapshot` the running rows, for keyframes.

    `way`: how the agent came here, told once, with the first keyframe: `armed` or `injected`.
    """

    def __init__(
        self,
        page: mmap.mmap,
        segments: int,
        segment_size: int,
        describe: Callable[[], dict[str, Any]],
        snapshot: Callable[[], Iterable[tuple[int, Row]]],
        way: str = "",
    ) -> None:
        self.page = page
        self.ring = rings.RingWriter(page, segments, segment_size)
        self.describe, self.snapshot = describe, snapshot
        self.numbers: dict[str, int] = {}
        self.arrived_steps: dict[str, int] = {}
        self.next_number = 0
        self.next_step = -1
        self.has_keyframe = False
        self.way = way

    def boundary(self) -> None:
        """Between two steps: leave a nearly full segment, and begin each segment with the whole state."""
        if self.ring.room < ROOM_FOR_A_STEP:
            self.ring.next_segment()
            self.has_keyframe = False
        if not self.has_keyframe:
            self.has_keyframe = True
            self.engine(self.describe())
            self.batch((), self.snapshot(), wire.KEYFRAME)
            if self.way:
                self.event("attached", reason=self.way)
                self.way = ""

    def number(self, request_id: str) -> int:
        """The number of a request in this process; a new one for an id not seen, or seen and finished."""
        number = self.numbers.get(request_id)
        if number is None:
            number = self.numbers[request_id] = self.next_number
            self.next_number += 1
        return number

    def engine(self, row: dict[str, Any]) -> None:
        """The engine's row (columns of `recorder.schema.ENGINE`)."""
        text = json.dumps(row).encode()
        self._put(wire.HEAD.pack(wire.ENGINE, 0, 0, len(text)) + text)

    def request(self, request_id: str, ts: int, prompt: int, max_tokens: int) -> None:
        """A request that came; `ts` -1: it was there before."""
        text = request_id.encode()
        step = self.next_step if ts >= 0 else -1
        if ts >= 0:
            self.arrived_steps[request_id] = step
        head = wire.REQUEST_HEAD.pack(
            wire.REQUEST, 0, len(text), self.number(request_id), ts, step, prompt, max_tokens
        )
        self._put(head + text)

    def batch(self, vacated: Iterable[int], joined: Iterable[tuple[int, Row]], flags: int = 0) -> None:
        """Rows that became free, and rows that a request now holds."""
        gone = list(vacated)
        parts = [b"".join(row.to_bytes(2, "little") for row in gone)]
        count = 0
        for row, request in joined:
            count += 1
            text = request.request_id.encode()
            parts.append(
                wire.JOINED.pack(
                    row,
                    len(text),
                    self.number(request.request_id),
                    request.num_prompt_tokens,
                    request.max_tokens,
                    request.num_computed_tokens,
                    request.num_blocks,
                    request.num_cached_tokens,
                    request.num_output_tokens,
                    self.arrived_steps.get(request.request_id, -1),
                )
            )
            parts.append(text)
        head = wire.BATCH_HEAD.pack(wire.BATCH, flags, len(gone), count, self.next_step)
        self._put(head + b"".join(parts))

    def blocks(self, pairs: list[tuple[int, int]], extended: bool) -> None:
        """Blocks that the requests of some rows hold; `extended`: decodes that the scheduler gave new ones."""
        flat = [number for pair in pairs for number in pair]
        head = wire.BLOCKS_HEAD.pack(wire.BLOCKS, int(extended), 0, len(pairs))
        self._put(head + b"".join(number.to_bytes(4, "little") for number in flat))

    def schedule(
        self,
        call: int,
        ts: int,
        duration_us: int,
        reason: str,
        figures: tuple[int, int, int, int, int, int, int, int, int],
        reservation: int = -1,
        flags: int = 0,
    ) -> None:
        """A scheduling call; `figures` as `wire.SCHEDULE_BODY` lists them, from the budget to the missing blocks."""
        code = wire.NOT_ADMITTED.index(reason) if reason in wire.NOT_ADMITTED else len(wire.NOT_ADMITTED) - 1
        length = wire.SCHEDULE_BODY.size
        at = self.ring.begin(length)
        wire.SCHEDULE_BODY.pack_into(
            self.page, at, wire.SCHEDULE, code, flags, duration_us, call, ts, *figures, reservation
        )
        self.ring.commit(length)

    def forward(
        self,
        step: int,
        call: int,
        ts: int,
        duration_us: int,
        predicted: int,
        memory: tuple[int, int, int, int],
        prefills: bytes,
        stalled: bytes,
        tokens: memoryview,
        emitted: memoryview,
        flags: int = 0,
    ) -> None:
        """One forward. `tokens` and `emitted`: contiguous signed integers, one a row; the row lists as `uint16`."""
        page, ring = self.page, self.ring
        lists = len(prefills) + len(stalled)
        at_tokens = wire.FORWARD_HEAD.size + wire.padded(lists)
        at_emitted = at_tokens + wire.padded(tokens.nbytes)
        length = at_emitted + wire.padded(emitted.nbytes)
        at = ring.begin(length)
        if self.next_step < 0:
            ring.first_forward(step, ts)
        codes = (tokens.itemsize.bit_length() - 1) | (emitted.itemsize.bit_length() - 1) << 4 | flags
        wire.FORWARD_HEAD.pack_into(
            page, at, wire.FORWARD, codes, len(tokens), len(prefills) >> 1, len(stalled) >> 1,
            step, call, ts, duration_us, predicted, *memory,
        )  # fmt: skip
        if lists:
            begin = at + wire.FORWARD_HEAD.size
            page[begin : begin + lists] = prefills + stalled
        page[at + at_tokens : at + at_tokens + tokens.nbytes] = tokens
        page[at + at_emitted : at + at_emitted + emitted.nbytes] = emitted
        ring.commit(length)
        self.next_step = step + 1

    def call(self, call: int, token: int) -> None:
        """The tasks of a scheduling call have reached this worker."""
        self._put(wire.CALL_BODY.pack(wire.CALL, 0, 0, 0, call, token))

    def memory(
        self,
        rank: int,
        call: int,
        since: int,
        ts: int,
        memory: tuple[int, int, int, int],
        duration_us: int = -1,
        launched: int = -1,
    ) -> None:
        """The allocator of a rank after its forward number `since` of those that follow `call`."""
        self._put(
            wire.MEMORY_BODY.pack(wire.MEMORY, 0, rank, since, call, ts, *memory, duration_us, launched)
        )

    def hashes(self, request_id: str, block_size: int, hashes: list[bytes]) -> None:
        """What tells each full block of a request's prompt from others, 8 bytes each."""
        head = wire.HASHES_HEAD.pack(wire.HASHES, 0, 0, self.number(request_id), len(hashes), block_size)
        self._put(head + b"".join(hashes))

    def event(
        self, kind: str, request_id: str | None = None, reason: str = "", detail: dict[str, Any] | None = None
    ) -> None:
        """Something that happened beside the tokens, at the next step."""
        why, more = reason.encode(), json.dumps(detail).encode() if detail else b""
        number = -1 if request_id is None else self.number(request_id)
        head = wire.EVENT_HEAD.pack(
            wire.EVENT,
            wire.EVENTS.index(kind),
            len(why),
            len(more),
            number,
            0,
            self.next_step,
            time.time_ns(),
        )
        self._put(head + why + more)

    def finish(self, request_id: str, reason: str, num_output_tokens: int) -> None:
        """A request ended, in the last step that was forwarded."""
        number = self.number(request_id)
        code = wire.FINISHED.index(reason) if reason in wire.FINISHED else len(wire.FINISHED) - 1
        step = self.next_step - 1 if self.next_step >= 0 else -1
        self._put(
            wire.FINISH_BODY.pack(wire.FINISH, code, 0, number, step, time.time_ns(), num_output_tokens, 0)
        )
        del self.numbers[request_id]
        self.arrived_steps.pop(request_id, None)

    def forget(self, request_id: str) -> None:
        """This process has nothing more to say of a request: if it comes back, it gets a new number."""
        self.numbers.pop(request_id, None)

    def close(self) -> None:
        """No frame follows."""
        self.ring.close()
        self.ring.release()
        self.page.close()  # it holds a descriptor of its own

    def _put(self, payload: bytes) -> None:
        length = wire.padded(len(payload))
        lap = self.ring.lap
        at = self.ring.begin(length)
        if self.ring.lap != lap:
            self.has_keyframe = False
        self.page[at : at + len(payload)] = payload
        self.ring.commit(length)
