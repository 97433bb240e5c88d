"""One request of a request trace, and the fields that it is read from. A wrong field is refused with its place."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.case_fields import as_json
from fdtrace.replayer.workload.case_variables import LARGEST
from fdtrace.replayer.workload.hash_prefix import LARGEST_ID

LARGEST_TIME = 1e16
"""Milliseconds: some 300,000 years."""
MOST_IDS = 1 << 20
"""Hashed blocks of one request."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a request trace: what all formats have in common."""

    where: str
    """Its place in the file, as `line 3`."""
    prompt: int
    """Tokens."""
    output: int | None
    """Tokens; None: the trace does not say."""
    time_ms: float | None = None
    """When it was sent, on the trace's own clock; None: the trace does not say."""
    hash_ids: tuple[int, ...] = ()
    """Its prompt in hashed blocks, from the first on; empty: not known."""


class TraceEntry:
    """The fields of one line, row or element. A null counts as a missing field."""

    def __init__(self, where: str, value: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
        """`labels`: the name of a field -> its name in this file, where they differ."""
        self.where, self._value, self._labels = where, value, labels or {}

    def label(self, name: str) -> str:
        """What the file calls a field."""
        return self._labels.get(name, name)

    def value(self, name: str) -> Any:
        """A field as it is; None: there is none."""
        return self._value.get(self.label(name))

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return self.value(name) not in (None, "")

    def refusal(self, name: str, what: str, hint: str) -> UsageError:
        """The error for a field."""
        value = self.value(name)
        if value is None:
            return UsageError(f"{self.where} has no `{self.label(name)}`", why=what, hint=hint)
        return UsageError(f"{self.where}: `{self.label(name)}` is {as_json(value)}", why=what, hint=hint)

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number; a text of digits and a number as 12.0 are taken too. UsageError."""
        value = self._number(name, "a whole number")
        if value != int(value) or not least <= value <= LARGEST:
            raise self.refusal(
                name,
                f"it must be a whole number from {least} to {LARGEST}",
                "correct it, or take this line out",
            )
        return int(value)

    def milliseconds(self, name: str, unit_ms: float) -> float:
        """A time in units of so many milliseconds. UsageError if it is no number."""
        value = float(self._number(name, "a number")) * unit_ms
        if not math.isfinite(value) or abs(value) > LARGEST_TIME:
            raise self.refusal(name, "it is no time", "correct it, or take this line out")
        return value

    def _number(self, name: str, kind: str) -> int | float:
        value = self.value(name)
        if isinstance(value, str):
            try:
                value = float(value) if len(value) < 40 else None
            except ValueError:
                value = None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_finite(value):
            raise self.refusal(name, f"it must be {kind}", "correct it, or take this line out")
        return value

    def text(self, name: str) -> str:
        """A text. UsageError if it is none."""
        value = self.value(name)
        if not isinstance(value, str):
            raise self.refusal(name, "it must be a text", "correct it, or take this line out")
        return value

    def objects(self, name: str) -> Sequence[Mapping[str, Any]]:
        """A list of objects. UsageError if it is none."""
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
            raise self.refusal(name, "it must be a list of objects", "correct it, or take this line out")
        return value

    def hash_ids(self, prompt: int, size: int) -> tuple[int, ...]:
        """The ids of a prompt's hashed blocks of `size` tokens. UsageError if they are more than the prompt has."""
        value = self.value("hash_ids")
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) > MOST_IDS:
            raise self.refusal("hash_ids", "it must be a list of block ids", "correct it, or take it out")
        if len(value) > -(-prompt // size):
            raise UsageError(
                f"{self.where}: `{self.label('hash_ids')}` has {len(value)} ids",
                why=f"a prompt of {prompt} tokens has {-(-prompt // size)} blocks of {size}",
                hint="--hash-block-size N, if the blocks of this trace have another size",
            )
        return tuple(map(self._block_id, value))

    def _block_id(self, value: Any) -> int:
        """An id as a case holds it. A number that is too large for it, and a text, are replaced by their hash."""
        if type(value) is int and 0 <= value < LARGEST_ID:
            return value
        if type(value) is int or (isinstance(value, str) and value):
            digest = hashlib.blake2b(
                f"{type(value).__name__}{value}".encode(errors="surrogatepass"), digest_size=8
            )
            return int.from_bytes(digest.digest(), "big") % LARGEST_ID
        raise UsageError(
            f"{self.where}: `{self.label('hash_ids')}` holds {as_json(value)}",
            why="an id of a block is a whole number or a text",
            hint="correct it, or take this line out",
        )


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


TextLength = Callable[[str], int]
"""Gives the tokens of a text."""
