"""Follows one ring to its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.engine import Engine
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.reader import BadRing, FrameBlock, Position, RingReader
from fdtrace.recorder.printable import printable

FLUSH_STEPS = 2000
"""Most forwards that are decoded at once. It limits the collector's memory when the collector has fallen behind."""

MOST_HELD = 64 << 20
"""Most bytes of a ring that are held while its engine is not known."""


@dataclass
class RingTail:
    """One ring: its own description (`about`), its engine, and the chunks that wait until that engine is known.

    `held` has these chunks, each with the position at which it begins.
    """

    reader: RingReader
    decoder: Engine | None = None
    part: EngineRing | None = None
    about: dict[str, Any] | None = None
    token: int | None = None
    held: list[tuple[Position, FrameBlock]] = field(default_factory=list)
    problem: str = ""
    """Why it is read no further; empty if it is still read."""

    @property
    def ended(self) -> bool:
        """Whether no more frames can come. Ask before the last read, not after it."""
        if self.problem:
            return True
        full = self.decoder is not None and self.decoder.full
        return full or self.reader.closed or not self.reader.writer_lives

    @property
    def is_full(self) -> bool:
        """Whether its writer will soon overwrite frames that were not read."""
        try:
            return not self.ended and self.reader.laps_left <= 1
        except (BadRing, OSError):
            return False

    @property
    def past(self) -> bool:
        """Whether its frames belong to steps after the last one that was asked for."""
        return self.part is not None and self.part.past

    def read(self) -> FrameBlock | None:
        """The next chunk; None if there is none, or if enough is decoded for now."""
        if self.past or (self.decoder is not None and self.decoder.unflushed >= FLUSH_STEPS):
            return None
        return self.held.pop(0)[1] if self.held else self._next()

    def _next(self) -> FrameBlock | None:
        if self.problem:
            return None
        try:
            return self.reader.read()
        except (BadRing, OSError) as error:
            self.reject(error)
            return None

    def feed(self, chunk: FrameBlock) -> None:
        """Decode a chunk. If no agent can have written its frames, this ring ends; other rings go on."""
        if self.problem:
            return
        try:
            if self.decoder is not None and self.part is not None:
                self.decoder.feed(self.part, chunk)
        except Exception as error:  # frames that lie may raise anything
            self.reject(error)

    def reject(self, error: Exception) -> None:
        """Stop reading this ring."""
        why = getattr(error, "why", "") or f"{type(error).__name__}: {error}"
        self.problem = self.problem or f"it holds data that no agent writes ({printable(why, 200)})"

    def hold(self) -> int:
        """Read without decoding, as long as the engine is not known. Returns the number of frames read."""
        frames, size = 0, self.size_held
        while size < MOST_HELD:
            begun = Position(**vars(self.reader.position))
            chunk = self._next()
            if chunk is None:
                break
            self.held.append((begun, chunk))
            try:
                self._identify(chunk)
            except Exception as error:
                self.reject(error)
            frames += len(chunk.payloads)
            size += len(chunk.data)
        return frames

    @property
    def size_held(self) -> int:
        """Bytes of the chunks that wait."""
        return sum(len(chunk.data) for _, chunk in self.held)

    def _identify(self, chunk: FrameBlock) -> None:
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
        """Where to continue reading, as JSON. Chunks that wait are read again."""
        return {
            "position": vars(self.held[0][0] if self.held else self.reader.position),
            "engine": None if self.decoder is None else self.decoder.engine_id,
            "part": None if self.part is None else self.part.state(),
        }
