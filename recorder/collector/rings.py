"""The rings of one recording, and which rings belong to the same engine."""

from __future__ import annotations

import os
import time
from typing import Any

from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.many_processes import ManyProcessEngine
from fdtrace.recorder.collector.one_process import OneProcessEngine
from fdtrace.recorder.collector.reader import BadRing, FrameBlock, Position, RingReader
from fdtrace.recorder.collector.tail import FLUSH_STEPS, MOST_HELD, RingTail
from fdtrace.recorder.collector.worker_engine import may_be, share_queue
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.ring_directory import RingDirectory


class Rings:
    """Every ring of a recording, by name, and the decoders of its engines."""

    def __init__(self, directory: RingDirectory | None, max_steps: int | None) -> None:
        self.directory, self.max_steps = directory, max_steps
        self.tails: dict[str, RingTail] = {}
        self.engines: list[Engine] = []
        self.tokens: dict[int, ManyProcessEngine] = {}
        self.salt = os.urandom(16)
        """Makes the block hashes of this trace different from those of any other trace."""
        self.read_at = 0
        self.share_read = 0.0
        """The share of a ring that the last `read` found written; of several rings, the largest."""
        self.missing: list[str] = []
        """The rings that could not be read, and why: one sentence each."""
        self._refused: set[str] = set()

    def discover(self) -> None:
        """Open the rings that are new since the last call."""
        if self.directory is None:
            return
        for name in self.directory.rings():
            if name not in self.tails and name not in self._refused:
                self.open(name)

    def open(self, name: str, position: Position | None = None) -> RingTail | None:
        """Open a ring. None if its writer has not finished making it, or if it cannot be read (then see `missing`)."""
        gone = f"ring {name} is gone: what it held after the last published step is lost"
        try:
            if self.directory is None:
                raise FileNotFoundError(name)
            tail = RingTail(RingReader(name, position, self.directory.open(name)))
        except FileNotFoundError:
            self._refuse(name, gone)
            return None
        except OSError as error:
            self._refuse(name, f"ring {name} cannot be read ({error}): its steps are not in this trace")
            return None
        except BadRing as error:
            self._refuse(name, f"{error.what} ({error.why}): it is not read")
            return None
        except TraceError:
            return None
        self.tails[name] = tail
        return tail

    def _refuse(self, name: str, why: str) -> None:
        self._refused.add(name)
        self.missing.append(why)

    def problems(self) -> list[str]:
        """What could not be read of the rings so far, and why: one sentence each."""
        stopped = [
            f"ring {name} is read no further: {tail.problem}"
            for name, tail in self.tails.items()
            if tail.problem
        ]
        return self.missing + stopped

    def take(self, engine: Engine, read_at: int) -> Decoded:
        """The rows of an engine since the last call.

        `read_at`: all rings have been read since then (UTC ns). 0: they have been read to the end. An engine whose
        frames make no sense ends, with the rows that were taken before.
        """
        try:
            return engine.take(read_at)
        except Exception as error:
            self.reject(engine, error)
            engine.discard()
            return Decoded()

    def reject(self, engine: Engine, error: Exception) -> None:
        """Stop reading all rings of an engine: their frames make no sense."""
        for tail in self.tails_of(engine):
            tail.reject(error)

    def read(self, final: bool = False) -> int:
        """Decode what was committed since the last call. Returns the number of frames read."""
        begun = {name: tail.reader.progress for name, tail in self.tails.items()}
        frames = self._read(final)
        self.share_read = max(
            (tail.reader.progress - begun[name] for name, tail in self.tails.items()), default=0.0
        )
        return frames

    def _read(self, final: bool) -> int:
        frames = self._hold(final)
        self.read_at = time.time_ns()
        tails_of_engine: dict[int, list[RingTail]] = {}
        for tail in self.tails.values():
            if isinstance(tail.decoder, ManyProcessEngine):
                tails_of_engine.setdefault(tail.decoder.engine_id, []).append(tail)
            elif tail.decoder is not None:
                frames += _read_alone(tail)
        return frames + sum(_read_joined(tails) for tails in tails_of_engine.values())

    def _hold(self, final: bool) -> int:
        frames = 0
        for tail in self.tails.values():
            if tail.decoder is None:
                frames += tail.hold()
        for tail in self.tails.values():
            if tail.decoder is None and _kind(tail) == "rank":
                frames += tail.hold()  # measurements from before the forwards that the engine's ring reports
        for kind in ("engine", "worker", "rank"):  # a worker is bound to an engine that is known
            for tail in self.tails.values():
                if tail.decoder is None and tail.about is not None and _kind(tail) in ("", kind):
                    self._bind(tail, final)
        return frames

    def _bind(self, tail: RingTail, final: bool) -> None:
        assert tail.about is not None
        kind = _kind(tail)
        if not kind:
            tail.decoder = OneProcessEngine(len(self.engines), self.max_steps, self.salt)
            tail.part = EngineRing("")
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

    def _join(self, tail: RingTail, engine: ManyProcessEngine) -> None:
        assert tail.about is not None
        tail.decoder, tail.part = engine, EngineRing(_kind(tail), tail.about.get("rank") or 0)
        if tail.part.kind == "engine":
            engine.begins = tail.about.get("ts") or 0

    def _engine_of(self, tail: RingTail, final: bool) -> ManyProcessEngine | None:
        """The engine of a worker: the one whose call a task names; else the one with the same message queue.

        None: not known yet. If nothing tells it in the end: the only engine that lacks such a worker, or a new one.
        """
        if tail.token is not None and tail.token in self.tokens:
            return self.tokens[tail.token]
        last_chance = final or tail.size_held >= MOST_HELD
        if tail.token is None:
            found = self._described_alike(tail, last_chance)
            if found is not None:
                return found
        return self._new_engine(tail.token) if last_chance else None

    def _described_alike(self, tail: RingTail, last_chance: bool) -> ManyProcessEngine | None:
        assert tail.about is not None
        candidates = [engine for engine in self._many() if may_be(self._description(engine), tail.about)]
        sharing = [engine for engine in candidates if share_queue(self._description(engine), tail.about)]
        # An engine that takes the place of one that ended may have its queue: the two are never there at once.
        living = [engine for engine in sharing if self._lives(engine)] if tail.reader.writer_lives else []
        if not last_chance or living:
            return living[0] if len(living) == 1 else None
        if len(sharing) != 1:
            sharing = [engine for engine in sharing or candidates if not self._has(engine, tail.about)]
        return sharing[0] if len(sharing) == 1 else None

    def _many(self) -> list[ManyProcessEngine]:
        return [engine for engine in self.engines if isinstance(engine, ManyProcessEngine)]

    def tails_of(self, engine: Engine) -> list[RingTail]:
        """The rings whose frames are an engine's."""
        return [tail for tail in self.tails.values() if tail.decoder is engine]

    def _description(self, engine: ManyProcessEngine) -> dict[str, Any]:
        """How an engine describes itself, also before its first frame is decoded."""
        return engine.row or next((tail.about for tail in self.tails_of(engine) if tail.about), {})

    def _lives(self, engine: ManyProcessEngine) -> bool:
        """Whether the scheduling process runs."""
        rings = [tail for tail in self.tails_of(engine) if tail.part and tail.part.kind == "engine"]
        return any(tail.reader.writer_lives for tail in rings)

    def _has(self, engine: ManyProcessEngine, about: dict[str, Any]) -> bool:
        """Whether an engine has a worker of this rank already."""
        part, rank = about.get("part"), about.get("rank") or 0
        return any(
            tail.part and (tail.part.kind, tail.part.rank) == (part, rank) for tail in self.tails_of(engine)
        )

    def state(self) -> dict[str, Any]:
        """All that a successor needs to read on, as JSON. Call it when all decoded rows have been taken."""
        tokens = {str(token): engine.engine_id for token, engine in self.tokens.items()}
        return {
            "tails": {name: tail.state() for name, tail in self.tails.items()},
            "engines": [engine.state() for engine in self.engines],
            "tokens": tokens,
            "salt": self.salt.hex(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
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
                tail.part = EngineRing.from_state(saved["part"]) if saved["part"] else None


def _kind(tail: RingTail) -> str:
    return (tail.about or {}).get("part") or ""


def _read_alone(tail: RingTail) -> int:
    frames = 0
    while (chunk := tail.read()) is not None:
        tail.feed(chunk)
        frames += len(chunk.payloads)
    return frames


def _read_joined(tails: list[RingTail]) -> int:
    """Read the rings of the forwards first, but decode them last: then all that came before each forward is known.

    These are the workers' rings. If the engine's own ring reports the forwards, it is that ring: then the ranks'
    measurements are decoded before it.
    """
    kinds = {tail.part.kind for tail in tails if tail.part}
    order = ("engine", "worker", "rank") if "worker" in kinds else ("rank", "engine")
    tails = sorted(tails, key=lambda tail: order.index(tail.part.kind) if tail.part else 0)
    chunks: list[tuple[RingTail, FrameBlock]] = []
    frames = 0
    for tail in tails[::-1]:
        own_chunks = []
        while (chunk := tail.read()) is not None:
            own_chunks.append((tail, chunk))
            frames += len(chunk.payloads)
            if (
                sum(len(data.payloads) for _, data in own_chunks) >= FLUSH_STEPS
                and tail.part
                and tail.part.kind != order[0]
            ):
                break
        chunks = own_chunks + chunks
    for tail, chunk in chunks:
        tail.feed(chunk)
    return frames
