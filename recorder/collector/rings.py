"""The rings of one recording, and which of them are one engine."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.engine import Engine
from fdtrace.recorder.collector.many_processes import ManyProcessEngine
from fdtrace.recorder.collector.one_process import OneProcessEngine
from fdtrace.recorder.collector.part import Part
from fdtrace.recorder.collector.reader import Chunk, Position, RingReader
from fdtrace.recorder.errors import TraceError

FLUSH_STEPS = 2000
"""Forwards decoded at once at most: bounds the collector's memory when it has fallen behind."""

PATIENCE = 1.0
"""Seconds that a worker's frames wait for the call that names its engine, before the only engine is taken for it."""

MOST_HELD = 64 << 20
"""Bytes of a ring whose engine is not known yet that are held at most."""


@dataclass
class Tail:
    """One ring: what it says of itself, the engine that it is a part of, and chunks that wait until that is known.

    `held` has them with the position where each begins.
    """

    reader: RingReader
    decoder: Engine | None = None
    part: Part | None = None
    about: dict[str, Any] | None = None
    token: int | None = None
    held: list[tuple[Position, Chunk]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        """Whether nothing more can come: ask before the last read, not after."""
        full = self.decoder is not None and self.decoder.full
        return full or self.reader.closed or not self.reader.writer_lives

    @property
    def past(self) -> bool:
        """Whether its frames are those of steps after the last one asked for."""
        return self.part is not None and self.part.past

    def read(self) -> Chunk | None:
        """The next chunk, unless enough is decoded already."""
        if self.past or (self.decoder is not None and self.decoder.unflushed >= FLUSH_STEPS):
            return None
        return self.held.pop(0)[1] if self.held else self.reader.read()

    def feed(self, chunk: Chunk) -> None:
        """Decode a chunk."""
        if self.decoder is not None and self.part is not None:
            self.decoder.feed(self.part, chunk)

    def hold(self) -> int:
        """Read on without decoding, as long as no engine is known; the number of frames read."""
        frames, size = 0, self.size_held
        while size < MOST_HELD:
            begun = Position(**vars(self.reader.position))
            chunk = self.reader.read()
            if chunk is None:
                break
            self.held.append((begun, chunk))
            self._look(chunk)
            frames += len(chunk.payloads)
            size += len(chunk.data)
        return frames

    @property
    def size_held(self) -> int:
        """Bytes that wait."""
        return sum(len(chunk.data) for _, chunk in self.held)

    def _look(self, chunk: Chunk) -> None:
        for at in chunk.payloads:
            kind = chunk.data[at]
            if kind == wire.ENGINE and self.about is None:
                length = wire.ENGINE_HEAD.read(chunk.data, at).length
                begin = at + wire.ENGINE_HEAD.size
                self.about = json.loads(chunk.data[begin : begin + length])
            elif kind == wire.TASKS and self.token is None:
                self.token = wire.TASKS_HEAD.read(chunk.data, at).token

    def state(self) -> dict[str, Any]:
        """Where to read on, as JSON; held chunks are read again."""
        return {
            "position": vars(self.held[0][0] if self.held else self.reader.position),
            "engine": None if self.decoder is None else self.decoder.engine_id,
            "part": None if self.part is None else self.part.state(),
        }


class Rings:
    """Every ring of a recording, by name, and the decoders of its engines."""

    def __init__(self, directory: str, max_steps: int | None) -> None:
        self.directory, self.max_steps = directory, max_steps
        self.tails: dict[str, Tail] = {}
        self.engines: list[Engine] = []
        self.tokens: dict[int, ManyProcessEngine] = {}
        self.salt = os.urandom(16)
        """Makes the block hashes of this trace unlike those of any other."""
        self.read_at = 0
        self.missing: list[str] = []

    def discover(self) -> None:
        """Open the rings that have come since."""
        try:
            names = sorted(entry for entry in os.listdir(self.directory) if entry.endswith(".ring"))
        except FileNotFoundError:
            return
        for name in names:
            if name not in self.tails:
                self.open(name)

    def open(self, name: str, position: Position | None = None) -> Tail | None:
        """Open a ring; None where its writer has not finished making it, or it is gone (then it is in `missing`)."""
        try:
            tail = Tail(RingReader(os.path.join(self.directory, name), position))
        except FileNotFoundError:
            self.missing.append(f"ring {name} is gone: what it held after the last published step is lost")
            return None
        except TraceError:
            return None
        self.tails[name] = tail
        return tail

    def read(self, final: bool = False) -> int:
        """Decode what was committed since the last call; the number of frames read."""
        frames = self._hold(final)
        self.read_at = time.time_ns()
        joined: dict[int, list[Tail]] = {}
        for tail in self.tails.values():
            if isinstance(tail.decoder, ManyProcessEngine):
                joined.setdefault(tail.decoder.engine_id, []).append(tail)
            elif tail.decoder is not None:
                frames += _read_alone(tail)
        return frames + sum(_read_joined(tails) for tails in joined.values())

    def _hold(self, final: bool) -> int:
        frames = 0
        for tail in self.tails.values():
            if tail.decoder is None:
                frames += tail.hold()
        for tail in self.tails.values():
            if tail.decoder is None and _kind(tail) == "rank":
                frames += tail.hold()  # what it measured before the forwards that an engine's ring tells of
        for part in ("engine", None):  # engines first: a worker is bound to one that is known
            for tail in self.tails.values():
                if (
                    tail.decoder is None
                    and tail.about is not None
                    and (part is None or _kind(tail) in ("", part))
                ):
                    self._bind(tail, final)
        return frames

    def _bind(self, tail: Tail, final: bool) -> None:
        assert tail.about is not None
        kind = _kind(tail)
        if not kind:
            tail.decoder = OneProcessEngine(len(self.engines), self.max_steps, self.salt)
            tail.part = Part("")
            self.engines.append(tail.decoder)
        elif kind == "engine":
            self._join(tail, self._new_engine(tail.about.get("token")))
        else:
            engine = self._engine_of(tail, final)
            if engine is None:
                return
            self._join(tail, engine)

    def _new_engine(self, token: int | None) -> ManyProcessEngine:
        engine = ManyProcessEngine(len(self.engines), self.max_steps, self.salt)
        self.engines.append(engine)
        if token is not None:
            self.tokens[token] = engine
        return engine

    def _join(self, tail: Tail, engine: ManyProcessEngine) -> None:
        assert tail.about is not None
        tail.decoder, tail.part = engine, Part(_kind(tail), tail.about.get("rank") or 0)
        if tail.part.kind == "engine":
            engine.begins = tail.about.get("ts") or 0

    def _engine_of(self, tail: Tail, final: bool) -> ManyProcessEngine | None:
        """The engine whose calls reached a worker; where none has come in a while, the only one there is."""
        assert tail.about is not None
        if tail.token is not None and tail.token in self.tokens:
            return self.tokens[tail.token]
        waited = time.monotonic() - tail.since > PATIENCE
        known = [engine for engine in self.tokens.values() if _may_be(engine, tail.about)]
        if len(known) == 1 and (final or waited) and tail.token is None:
            return known[0]
        if final or tail.size_held >= MOST_HELD:
            return self._new_engine(tail.token)
        return None

    def state(self) -> dict[str, Any]:
        """All that reading on needs, as JSON; call it when everything decoded has been taken."""
        tokens = {str(token): engine.engine_id for token, engine in self.tokens.items()}
        return {
            "tails": {name: tail.state() for name, tail in self.tails.items()},
            "engines": [engine.state() for engine in self.engines],
            "tokens": tokens,
            "salt": self.salt.hex(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.salt = bytes.fromhex(state["salt"]) if "salt" in state else self.salt
        for saved in state.get("engines", ()):
            kind = ManyProcessEngine if saved["kind"] == "many processes" else OneProcessEngine
            self.engines.append(kind.from_state(saved, self.salt))
        for token, number in state.get("tokens", {}).items():
            engine = self.engines[number]
            assert isinstance(engine, ManyProcessEngine)
            self.tokens[int(token)] = engine
        for name, saved in state.get("tails", {}).items():
            tail = self.open(name, Position(**saved["position"]))
            if tail is not None and saved["engine"] is not None:
                tail.decoder = self.engines[saved["engine"]]
                tail.part = Part.from_state(saved["part"]) if saved["part"] else None


def _kind(tail: Tail) -> str:
    return (tail.about or {}).get("part") or ""


def _may_be(engine: ManyProcessEngine, about: dict[str, Any]) -> bool:
    """Whether nothing that a worker says of itself speaks against an engine."""
    known = engine.row or {}
    return all(known.get(key) is None or about.get(key) in (None, known[key]) for key in ("host", "dp_rank"))


def _read_alone(tail: Tail) -> int:
    frames = 0
    while (chunk := tail.read()) is not None:
        tail.feed(chunk)
        frames += len(chunk.payloads)
    return frames


def _read_joined(tails: list[Tail]) -> int:
    """What runs the forwards is read first and decoded last: whatever led to it is known by then.

    Those are the workers, and the engine where it tells of the forwards itself: the ranks' measurements led to it then.
    """
    kinds = {tail.part.kind for tail in tails if tail.part}
    order = ("engine", "worker", "rank") if "worker" in kinds else ("rank", "engine")
    tails = sorted(tails, key=lambda tail: order.index(tail.part.kind) if tail.part else 0)
    chunks: list[tuple[Tail, Chunk]] = []
    frames = 0
    for tail in tails[::-1]:
        mine = []
        while (chunk := tail.read()) is not None:
            mine.append((tail, chunk))
            frames += len(chunk.payloads)
            if (
                sum(len(data.payloads) for _, data in mine) >= FLUSH_STEPS
                and tail.part
                and tail.part.kind != order[0]
            ):
                break
        chunks = mine + chunks
    for tail, chunk in chunks:
        tail.feed(chunk)
    return frames
