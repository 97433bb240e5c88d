"""A bounded ring of segments in a memory-mapped file: one writer inside the engine, one reader outside, no locks.

    file     header page, then NUM_SEGMENTS segments of SEGMENT_SIZE bytes
    segment  lap (which round through the ring this is, from 1), number of its first frame, then frames
    frame    commit word = number << 32 | length, payload

The payload of a frame is written first, and its commit word last. Before that, the word behind the frame is cleared. So
a reader that stops at 0 never sees half a frame, and if the writer is killed at any moment, no complete frame is lost.
When all segments are full, the oldest is overwritten: first its lap becomes 0, and so a reader notices. The order of
the stores relies on x86, where stores become visible in program order.

The file must keep its length: a store beyond its end raises SIGBUS, which no Python code survives. The file needs a
name that outlives its users, and such a file cannot be sealed. So its space is written before it is mapped, its mode
lets nobody but root write to it again, and the writer checks its length before it stores, at most once a millisecond.
"""

from __future__ import annotations

import mmap
import os
import struct
from time import monotonic
from typing import Any

MAGIC = b"FDTRING1"
PAGE = 4096
SEGMENT_HEAD = 32
FIRST_LAP = 1
END_OF_SEGMENT = 0xFFFFFFFF
DEFAULT_SEGMENTS = 8
DEFAULT_SEGMENT_SIZE = 1 << 20

HEADER = struct.Struct("<8sIIQQQQ")
"""Magic, protocol, segments, segment size, pid, the process's start time in clock ticks, UTC ns of the opening."""

CLOSED = 64
"""Offset of the word that becomes 1 when the writer itself ends its recording."""

FIRST_FORWARD = 72
"""Offset of two words about the first forward written: its step plus 1 (0 before there is one), and its ts. They are
never overwritten. So one knows how much was lost, even if the first frames are gone."""

CHECK_EVERY = 0.001
"""Seconds between two checks of the file's length by the writer."""


def process_start(pid: int) -> int:
    """The start time of a process in clock ticks since boot (field 22 of /proc/PID/stat); 0 if there is none."""
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def create(path: str, protocol: int, now_ns: int, segments: int, segment_size: int) -> mmap.mmap:
    """Make the ring's file with all its space, and map it. Raises OSError if there is no room; then no file is left."""
    size = PAGE + segments * segment_size
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _fill(fd, size)
        os.fchmod(fd, 0o400)
        # Not MAP_POPULATE: it holds the GIL for milliseconds. Page by page, it costs a microsecond in some steps.
        ring = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
    pid = os.getpid()
    head = HEADER.pack(MAGIC, protocol, segments, segment_size, pid, process_start(pid), now_ns)
    ring[8 : len(head)] = head[8:]
    ring[:8] = MAGIC  # last: a reader that sees it sees the rest too
    return ring


def _fill(fd: int, size: int) -> None:
    """Write zeros, so that the file system allocates the space.

    Not fallocate: some file systems have none, and some seccomp filters kill a process that calls it.
    """
    zeros = bytes(1 << 18)
    num_written = 0
    while num_written < size:
        num_written += os.write(fd, zeros[: size - num_written])


class RingWriter:
    """The writing side. Not thread-safe: the caller serialises."""

    def __init__(self, ring: mmap.mmap, segments: int, segment_size: int) -> None:
        self.ring, self.length = ring, len(ring)
        self.next_check = 0.0
        self.view = memoryview(ring)
        self.words = self.view.cast("Q")
        self.segments, self.segment_size = segments, segment_size
        self.number = 0
        self.is_fresh = True
        """Whether the segment has no keyframe yet."""
        self.lap = FIRST_LAP - 1
        self.offset = self.end = 0
        self.next_segment()

    @property
    def room(self) -> int:
        """Bytes that still fit into the current segment."""
        return self.end - self.offset - 16

    @property
    def is_whole(self) -> bool:
        """Whether the file still has its length. If the program has closed our descriptor, we cannot know: True."""
        try:
            return self.ring.size() >= self.length
        except OSError:
            return True

    def _check_length(self) -> None:
        """Raise OSError if somebody has cut the file."""
        self.next_check = monotonic() + CHECK_EVERY
        if not self.is_whole:
            self.next_check = 0.0
            raise OSError("the ring's file was cut short by another program")

    def next_segment(self) -> None:
        """Close the current segment and begin the next one. The oldest one is overwritten."""
        if monotonic() >= self.next_check:
            self._check_length()
        if self.end:
            self.words[self.offset >> 3] = self.number << 32 | END_OF_SEGMENT
        self.lap += 1
        start = PAGE + (self.lap % self.segments) * self.segment_size
        self.words[start >> 3] = 0
        self.words[(start + SEGMENT_HEAD) >> 3] = 0
        self.words[(start + 8) >> 3] = self.number
        self.words[start >> 3] = self.lap
        self.is_fresh = True
        self.offset, self.end = start + SEGMENT_HEAD, start + self.segment_size

    def write(self, payload: Any) -> None:
        """Write a frame and make it visible to a reader. `payload`: any object with a buffer of bytes.

        Raises OSError if somebody has cut the file.
        """
        # Every frame comes here. With cold caches each function takes time, so what is frequent is written out.
        now = monotonic()
        if now >= self.next_check:
            self.next_check = now + CHECK_EVERY
            try:
                whole = self.ring.size()
            except OSError:  # as in `is_whole`
                whole = self.length
            if whole < self.length:
                self._check_length()
        size, offset = len(payload), self.offset
        at = offset + 8
        end = at + (size + 7 & ~7)
        if end + 8 > self.end:
            if end - offset > self.segment_size - SEGMENT_HEAD - 8:
                raise ValueError("a frame of %d bytes does not fit a segment" % size)
            self.next_segment()
            offset = self.offset
            at = offset + 8
            end = at + (size + 7 & ~7)
        words, number = self.words, self.number
        words[end >> 3] = 0
        self.ring[at : at + size] = payload
        words[offset >> 3] = (number & 0xFFFFFFFF) << 32 | end - offset
        self.number, self.offset = number + 1, end

    def first_forward(self, step: int, ts: int) -> None:
        """Note the first forward of this ring: its step, and when it began (`ts`). Raises OSError as `write` does."""
        self._check_length()
        self.words[(FIRST_FORWARD >> 3) + 1] = ts
        self.words[FIRST_FORWARD >> 3] = step + 1

    def close(self) -> None:
        """Mark the ring as closed: no frame follows."""
        if self.is_whole:
            self.words[CLOSED >> 3] = 1

    def release(self) -> None:
        """Drop the views so that the mapping can be closed."""
        self.words.release()
        self.view.release()
