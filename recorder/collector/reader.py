"""Reads the committed frames of one ring, and says exactly how many were overwritten before they were read.

The ring belongs to the engine's user, who may be another user than ours. So everything in it is checked before it is
used. The file is read, not mapped: if a mapped file is cut short, access to it raises SIGBUS.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from fdtrace.recorder.agent import ring as rings
from fdtrace.recorder.agent import wire
from fdtrace.recorder.errors import TraceError

PIECE = 1 << 16
"""Bytes that are scanned at a time."""

LARGEST = 1 << 34
"""Most bytes of a ring: none of ours is longer."""

WORD = struct.Struct("<Q")
MOST_TRIES = 1000
"""After so many tries the writer is much quicker than we are, or its ring lies. The next call tries again."""


class BadRing(TraceError):
    """A ring holds something that no agent of ours can have written. It is read no further."""


@dataclass
class Position:
    """Where to continue reading: a lap of the ring, an offset in the file, and the number of the next frame."""

    lap: int = rings.FIRST_LAP
    offset: int = -1
    number: int = 0


@dataclass(frozen=True)
class FrameBlock:
    """Consecutive frames: their bytes, and where in them each payload begins.

    `lost`: how many frames were lost before the first of these. If any were, `first_forward` is the step and ts of the
    first forward that was ever written to the ring.
    """

    data: bytes
    payloads: list[int]
    lost: int
    first_forward: tuple[int, int] | None = None


class RingReader:
    """Reads a ring. It writes nothing to it, so any number of readers do no harm.

    `fd`, if given, is the open file; this object then closes it.

    Raises:
        TraceError: the file is no ring.
        BadRing: the ring's header, or the position, is impossible.
    """

    def __init__(self, path: str, position: Position | None = None, fd: int = -1) -> None:
        self.path = path
        self.fd = fd if fd >= 0 else os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._read_header()
            self.position = position or Position()
            if self.position.offset < 0:
                self.position.offset = self._segment(self.position.lap) + rings.SEGMENT_HEAD
            self._check_position()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        size = os.fstat(self.fd).st_size
        if size < rings.PAGE:
            raise TraceError(f"{self.path} is no ring: {size} bytes")
        magic, protocol, self.segments, self.segment_size, self.pid, self.start, self.opened_ns = (
            rings.HEADER.unpack(self._bytes(0, rings.HEADER.size))
        )
        if magic != rings.MAGIC or protocol != wire.PROTOCOL:
            raise TraceError(f"{self.path} is no ring of this version of fdtrace (protocol {protocol})")
        expected_size = rings.PAGE + self.segments * self.segment_size
        if (
            self.segments < 2
            or self.segment_size < rings.PAGE
            or self.segment_size % 8
            or expected_size > LARGEST
        ):
            raise self._bad(f"{self.segments} segments of {self.segment_size} bytes")
        if size < expected_size:
            raise self._bad(f"{size} bytes, {expected_size} by its own account")
        if not 0 < self.pid < 1 << 31 or self.opened_ns >= 1 << 63:
            raise self._bad(f"written by process {self.pid} at {self.opened_ns} ns")

    def _check_position(self) -> None:
        position = self.position
        start = self._segment(position.lap) + rings.SEGMENT_HEAD
        end = start - rings.SEGMENT_HEAD + self.segment_size
        numbers = (position.lap, position.offset, position.number)
        if not all(isinstance(number, int) and 0 <= number < 1 << 63 for number in numbers):
            raise self._bad(f"to be read on at {position}")
        if position.lap < rings.FIRST_LAP or position.offset % 8 or not start <= position.offset <= end - 8:
            raise self._bad(f"to be read on at {position}")

    def _bad(self, why: str) -> BadRing:
        return BadRing(f"{os.path.basename(self.path)} is no ring that an agent wrote", why=why)

    def _bytes(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) < size:
            raise self._bad(f"it was cut short: nothing at byte {offset + len(data)}")
        return data

    def _word(self, offset: int) -> int:
        return int(WORD.unpack(self._bytes(offset, 8))[0])

    def _segment(self, lap: int) -> int:
        return int(rings.PAGE + (lap % self.segments) * self.segment_size)

    @property
    def closed(self) -> bool:
        """Whether the writer has ended its recording itself."""
        return os.pread(self.fd, 8, rings.CLOSED) == b"\1\0\0\0\0\0\0\0"

    @property
    def first_forward(self) -> tuple[int, int] | None:
        """Step and ts of the first forward that was ever written to this ring; None if none was."""
        step, ts = self._word(rings.FIRST_FORWARD), self._word(rings.FIRST_FORWARD + 8)
        return (step - 1, ts) if 0 < step < 1 << 62 and ts < 1 << 63 else None

    @property
    def writer_lives(self) -> bool:
        """Whether the writing process still runs: not merely a later process with its pid."""
        return bool(rings.process_start(self.pid) == self.start)

    @property
    def progress(self) -> float:
        """How far it has been read, in lengths of the ring."""
        lap = self.position.lap
        within = self.position.offset - self._segment(lap)
        return float(lap + within / self.segment_size) / float(self.segments)

    @property
    def laps_left(self) -> int:
        """How many more segments the writer may fill before it overwrites frames that were not read."""
        newest = max(self._laps())
        return int(max(0, self.position.lap + self.segments - 1 - newest))

    def _laps(self) -> list[int]:
        return [self._word(self._segment(k)) for k in range(self.segments)]

    def read(self) -> FrameBlock | None:
        """The frames committed since the last call, from one segment at most. None if there are none.

        Raises:
            BadRing: no agent can have written what the ring holds.
        """
        lost = 0
        for _ in range(MOST_TRIES):
            position, start = self.position, self._segment(self.position.lap)
            lap = self._word(start)
            if lap == position.lap:
                chunk, following = self._scan(lost)
                if self._word(start) == lap:
                    self.position = following
                    if chunk.payloads:
                        return chunk
                    if following.lap == position.lap:
                        return self._only(lost)
                    continue  # the rest of a segment is empty: continue with the next
            elif lap < position.lap:
                return self._only(lost)  # the writer has not begun the next segment
            lost += self._skip()
        return self._only(lost)

    def _only(self, lost: int) -> FrameBlock | None:
        return FrameBlock(b"", [], lost, self.first_forward) if lost else None

    def _scan(self, lost: int) -> tuple[FrameBlock, Position]:
        position = self.position
        at = begin = position.offset
        number, lap = position.number, position.lap
        end = self._segment(lap) + self.segment_size
        piece, payloads = b"", []
        while True:
            if at + 8 > begin + len(piece):
                if at + 8 > end:
                    raise self._bad(f"no end of the segment before byte {end}")
                begin, piece = at, self._bytes(at, min(PIECE if piece else rings.PAGE, end - at))
            (word,) = WORD.unpack_from(piece, at - begin)
            if not word or word >> 32 != number & 0xFFFFFFFF:
                break
            length = word & 0xFFFFFFFF
            if length == rings.END_OF_SEGMENT:
                lap += 1
                break
            if length < 16 or length % 8 or at + length + 8 > end:
                raise self._bad(f"a frame of {length} bytes at byte {at}")
            payloads.append(at + 8 - position.offset)
            at += length
            number += 1
        # Read after the commit words, so it is complete.
        data = self._bytes(position.offset, at - position.offset)
        offset = at if lap == position.lap else self._segment(lap) + rings.SEGMENT_HEAD
        return FrameBlock(data, payloads, lost, self.first_forward if lost else None), Position(
            lap, offset, number
        )

    def _skip(self) -> int:
        """Go to the oldest segment that will not be overwritten next. Returns the number of lost frames."""
        for _ in range(MOST_TRIES):
            laps = sorted(self._laps())
            lap = laps[1]
            start = self._segment(lap)
            first = self._word(start + 8)
            if self._word(start) == lap:
                break
        else:
            return 0
        lost = first - self.position.number
        if lap < self.position.lap or lost < 0 or first >= 1 << 62:
            raise self._bad(
                f"lap {lap} begins with frame {first}, lap {self.position.lap} had {self.position.number}"
            )
        self.position = Position(lap, start + rings.SEGMENT_HEAD, first)
        return lost

    def close(self) -> None:
        """Close the ring. The file stays."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
