"""One ring, followed to its end."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.engine import Engine
from fdtrace.recorder.collector.part import Part
from fdtrace.recorder.collector.reader import BadRing, FrameBlock, Position, RingReader
from fdtrace.recorder.printable import printable

FLUSH_STEPS = 2000
"""Forwards decoded at once at most: bounds the collector's memory when it has fallen behind."""

MOST_HELD = 64 << 20
"""Bytes of a ring whose engine is not known yet that are held at most."""


@dataclass
class RingTail:
    """One ring: what it says of itself, the engine that it is a part of, and chunks that wait until that is known.

    `held` has them with the position where each begins.
    """

    reader: RingReader
    decoder: Engine | None = None
    part: Part | None = None
    about: dict[str, Any] | None = None
    token: int | None = None
    held: list[tuple[Position, FrameBlock]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    problem: str = ""
    """Why it is read no further, where it is not."""

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: ask before the last read, not after."""
        if self.problem:
            return True
        full = self.decoder is not None and self.decoder.full
        return full or self.reader.closed or not self.reader.writer_lives

    @property
    def is_full(self) -> bool:
        """Whether its writer is about to overwrite what was not read."""
        try:
            return not self.ended and self.reader.laps_left <= 1
        except (BadRing, OSError):
            return False

    @property
    def past(self) -> bool:
        """Whether its frames are those of steps after the last one asked for."""
        return self.part is not None and self.part.past

    def read(self) -> FrameBlock | None:
        """The next chunk, unless enough is decoded already."""
        if self.past or (self.decoder is not None and self.decoder.unflushed >= FLUSH_STEPS):
            return None
        return self.held.pop(0)[1] if self.held else self._next()

    def _next(self) -> FrameBlock | None:
        if self.problem:
            return None
        try:
            return self.reader.read()
        except (BadRing, OSError) as error:
            self.spoil(error)
            return None

    def feed(self, chunk: FrameBlock) -> None:
        """Decode a chunk. Frames that no agent can have written end this ring, and it alone."""
        if self.problem:
            return
        try:
            if self.decoder is not None and self.part is not None:
                self.decoder.feed(self.part, chunk)
        except Exception as error:  # whatever a lie may lead to in there
            self.spoil(error)

    def spoil(self, error: Exception) -> None:
        """Read no further."""
        why = getattr(error, "why", "") or f"{type(error).__name__}: {error}"
        self.problem = self.problem or f"it holds what no agent writes ({printable(why, 200)})"

    def hold(self) -> int:
        """Read on without decoding, as long as no engine is known; the number of frames read."""
        frames, size = 0, self.size_held
        while size < MOST_HELD:
            begun = Position(**vars(self.reader.position))
            chunk = self._next()
            if chunk is None:
                break
            self.held.append((begun, chunk))
            try:
                self._look(chunk)
            except Exception as error:
                self.spoil(error)
            frames += len(chunk.payloads)
            size += len(chunk.data)
        return frames

    @property
    def size_held(self) -> int:
        """Bytes that wait."""
        return sum(len(chunk.data) for _, chunk in self.held)

    def _look(self, chunk: FrameBlock) -> None:
        for at in chunk.payloads:
            kind = chunk.data[at]
            if kind == wire.ENGINE and self.about is None:
                length = wire.ENGINE_HEAD.read(chunk.data, at).length
                begin = at + wire.ENGINE_HEAD.size
                about = json.loads(chunk.data[begin : begin + length])
                if not isinstance(about, dict):
                    raise ValueError("an engine's frame that is no object")
                self.about = about
            elif kind == wire.TASKS and self.token is None:
                self.token = wire.TASKS_HEAD.read(chunk.data, at).token

    def state(self) -> dict[str, Any]:
        """Where to read on, as JSON; held chunks are read again."""
        return {
            "position": vars(self.held[0][0] if self.held else self.reader.position),
            "engine": None if self.decoder is None else self.decoder.engine_id,
            "part": None if self.part is None else self.part.state(),
        }
