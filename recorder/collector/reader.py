"""Reads the committed frames of one ring, and tells exactly what was overwritten before it was read."""

from __future__ import annotations

import contextlib
import mmap
import os
from dataclasses import dataclass

from fdtrace.recorder.agent import ring as rings
from fdtrace.recorder.agent import wire
from fdtrace.recorder.errors import TraceError


@dataclass
class Position:
    """Where to read on: a lap of the ring, an offset in the file, and the number of the next frame."""

    lap: int = rings.FIRST_LAP
    offset: int = -1
    number: int = 0


@dataclass(frozen=True)
class Chunk:
    """Consecutive frames: their bytes, and where in them each payload begins. `lost` frames came before the first."""

    data: bytes
    payloads: list[int]
    lost: int


class RingReader:
    """The reading side of a ring; it writes nothing there, so any number of readers do no harm."""

    def __init__(self, path: str, position: Position | None = None) -> None:
        self.path = path
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            if size < rings.PAGE:
                raise TraceError(f"{path} is no ring: {size} bytes")
            self.page = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        finally:
            os.close(fd)
        magic, protocol, self.segments, self.segment_size, self.pid, self.start, self.opened_ns = (
            rings.HEADER.unpack_from(self.page)
        )
        if magic != rings.MAGIC or protocol != wire.PROTOCOL:
            self.page.close()
            raise TraceError(f"{path} is no ring of this version of fdtrace (protocol {protocol})")
        self.view = memoryview(self.page)
        self.words = self.view.cast("Q")
        self.position = position or Position()
        if self.position.offset < 0:
            self.position.offset = self._segment(self.position.lap) + rings.SEGMENT_HEAD

    def _segment(self, lap: int) -> int:
        return int(rings.PAGE + (lap % self.segments) * self.segment_size)

    @property
    def closed(self) -> bool:
        """Whether the writer ended its recording by itself."""
        return bool(self.words[rings.CLOSED >> 3] == 1)

    @property
    def writer_lives(self) -> bool:
        """Whether the process that writes still runs (not merely another one of the same pid)."""
        return bool(rings.process_start(self.pid) == self.start)

    def read(self) -> Chunk | None:
        """The frames committed since the last call, of one segment at most; None where there are none."""
        lost = 0
        while True:
            here, start = self.position, self._segment(self.position.lap)
            lap = self.words[start >> 3]
            if lap < here.lap:
                return None  # the writer has closed the last segment and not begun this one
            if lap == here.lap:
                chunk, following = self._scan(lost)
                if self.words[start >> 3] == lap:
                    self.position = following
                    return chunk if chunk.payloads else self._next_or_none(here, following, lost)
            lost += self._skip()

    def _next_or_none(self, here: Position, following: Position, lost: int) -> Chunk | None:
        if following.lap != here.lap:
            chunk = self.read()
            return (
                chunk if chunk is None or not lost else Chunk(chunk.data, chunk.payloads, chunk.lost + lost)
            )
        return Chunk(b"", [], lost) if lost else None

    def _scan(self, lost: int) -> tuple[Chunk, Position]:
        words, here = self.words, self.position
        first = at = here.offset
        number, lap = here.number, here.lap
        payloads: list[int] = []
        while (word := words[at >> 3]) and (word >> 32) == (number & 0xFFFFFFFF):
            length = word & 0xFFFFFFFF
            if length == rings.END_OF_SEGMENT:
                lap += 1
                break
            payloads.append(at + 8 - first)
            at += length
            number += 1
        following = Position(lap, at, number)
        if lap != here.lap:
            following.offset = self._segment(lap) + rings.SEGMENT_HEAD
        return Chunk(bytes(self.view[first:at]), payloads, lost), following

    def _skip(self) -> int:
        """Go to the oldest segment that will not be overwritten next; the number of frames that were lost."""
        while True:
            laps = sorted(self.words[self._segment(k) >> 3] for k in range(self.segments))
            lap = laps[min(1, len(laps) - 1)]
            start = self._segment(lap)
            first = self.words[(start + 8) >> 3]
            if self.words[start >> 3] == lap:
                break
        lost = first - self.position.number
        self.position = Position(lap, start + rings.SEGMENT_HEAD, first)
        return int(lost)

    def close(self) -> None:
        """Unmap the ring; the file stays."""
        with contextlib.suppress(BufferError):
            self.words.release()
            self.view.release()
            self.page.close()
