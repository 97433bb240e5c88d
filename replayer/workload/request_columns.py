"""Many requests in few bytes: columns, of which a request is made when it is asked for.

As objects, a request takes 500 bytes and more, and a replay of millions of steps has millions of requests.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise, repeat
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.recorded.compact_numbers import extended, smallest
from fdtrace.replayer.workload.workload import WorkRequest

FIELDS: Final = WorkRequest._fields
DEFAULTS: Final = [WorkRequest._field_defaults.get(name) for name in FIELDS]
NUMBERS: Final = (
    "arrival", "num_prompt_tokens", "num_output_tokens", "max_tokens", "abort_after", "group", "target", "join_after",
    "send_after", "on_its_way", "think", "priority",
)  # fmt: skip
"""Fields that are whole numbers, or None."""
RAGGED: Final = ("accepts", "drafts")
"""Fields that are arrays."""
FLAGS: Final = ("discarded", "after_idle")
OBJECTS: Final = ("block_key", "resumed", "restarts")
"""Fields that are kept as they are, of the requests that have them."""
AT: Final = {name: i for i, name in enumerate(FIELDS)}
NONE: Final = -1
"""Stands for None in a column."""
LARGEST: Final = 2**63 - 1
MADE_AT_ONCE: Final = 256
BLOCK: Final = 16_384
"""Requests that are collected before their numbers become columns."""
CODES: Final = {1: "b", 2: "h", 4: "i", 8: "q"}


class RequestColumns(Sequence[WorkRequest]):
    """Requests of a workload. Reading one takes about a microsecond; two readings give equal, not identical ones."""

    def __init__(self, requests: Iterable[WorkRequest]) -> None:
        """`requests` may be a generator: none of them is kept."""
        self._length = 0
        self._ids, self._id_starts = bytearray(), array("i", [0])
        self._ragged = [_Arrays(), _Arrays()]
        self._flags = bytearray()
        self._objects: dict[int, dict[int, Any]] = {}
        """By the entry of a field and of a request: values that no column holds."""
        blocks: list[list[NDArray[np.signedinteger[Any]]]] = [[] for _ in NUMBERS]
        coming = iter(requests)
        while block := list(islice(coming, BLOCK)):
            for name, parts in zip(NUMBERS, blocks, strict=True):
                values = [self._number(name, i, getattr(r, name)) for i, r in enumerate(block, self._length)]
                parts.append(smallest(np.array(values, np.int64)))
            for request in block:
                self._add(request)
        self._columns: list[tuple[int, array[int]]] = []
        """The entry of each field that is not the same in all requests, and its column."""
        self._first = list(DEFAULTS)
        """The fields of every request that has none of its own."""
        for name, parts in zip(NUMBERS, blocks, strict=True):
            self._keep(AT[name], parts)
        for arrays in self._ragged:
            arrays.end()

    def _number(self, name: str, i: int, value: Any) -> int:
        if value is None:
            return NONE
        if type(value) is int and NONE < value <= LARGEST:
            return value
        self._objects.setdefault(AT[name], {})[i] = value
        return 0

    def _add(self, request: WorkRequest) -> None:
        i = self._length
        self._ids += request.request_id.encode("utf-8", "surrogatepass")
        self._id_starts = extended(self._id_starts, (len(self._ids),))
        for name, arrays in zip(RAGGED, self._ragged, strict=True):
            value = getattr(request, name)
            is_kept = (
                arrays.add(value) or value is DEFAULTS[AT[name]] or (name == "accepts" and not len(value))
            )
            if not is_kept:
                self._objects.setdefault(AT[name], {})[i] = value
        for name in OBJECTS:
            value = getattr(request, name)
            if value is not None and value != ():
                self._objects.setdefault(AT[name], {})[i] = value
        self._flags.append(request.discarded + 2 * request.after_idle)
        self._length += 1

    def _keep(self, field: int, parts: list[NDArray[np.signedinteger[Any]]]) -> None:
        """Keep the column of a field, or the one value that all requests have."""
        low = min((int(part.min()) for part in parts), default=0)
        high = max((int(part.max()) for part in parts), default=0)
        if low == high:
            self._first[field] = None if low == NONE else low
            return
        column = np.concatenate(parts)
        self._columns.append((field, array(CODES[column.itemsize], column.tobytes())))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> WorkRequest: ...
    @overload
    def __getitem__(self, index: slice) -> list[WorkRequest]: ...
    def __getitem__(self, index: int | slice) -> WorkRequest | list[WorkRequest]:
        if isinstance(index, slice):
            return [self._request(i) for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._request(index % self._length)

    def __iter__(self) -> Iterator[WorkRequest]:
        """All requests, some hundreds made at once: this takes half the time that reading each by its entry does."""
        for first in range(0, self._length, MADE_AT_ONCE):
            yield from self._made(first, min(first + MADE_AT_ONCE, self._length))

    def _made(self, first: int, end: int) -> Iterator[WorkRequest]:
        fields: list[Iterable[Any]] = [repeat(value) for value in self._first]
        fields[0] = map(self.request_id, range(first, end))
        for field, column in self._columns:
            part = column[first:end]
            fields[field] = [None if value == NONE else value for value in part] if NONE in part else part
        accepts, drafts = self._ragged
        fields[ACCEPTS] = accepts.all(first, end, ())
        fields[SUMS] = accepts.sums(first, end)
        if drafts.kind is not None:
            fields[DRAFTS] = drafts.all(first, end, None)
        flags = self._flags[first:end]
        if any(flags):
            fields[DISCARDED] = [bool(value & 1) for value in flags]
            fields[AFTER_IDLE] = [bool(value & 2) for value in flags]
        for field, objects in self._objects.items():
            if any(i in objects for i in range(first, end)):
                others = list(islice(fields[field], end - first))
                fields[field] = [objects.get(i, other) for i, other in enumerate(others, first)]
        return map(WorkRequest._make, zip(*fields, strict=False))  # those with one value for all have no end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _request(self, i: int) -> WorkRequest:
        values = self._first.copy()
        values[0] = self.request_id(i)
        for field, column in self._columns:
            value = column[i]
            values[field] = None if value == NONE else value
        accepts, drafts = self._ragged
        values[ACCEPTS] = accepts.of(i, ())
        if drafts.kind is not None:
            values[DRAFTS] = drafts.of(i, None)
        if flags := self._flags[i]:
            values[DISCARDED], values[AFTER_IDLE] = bool(flags & 1), bool(flags & 2)
        for field, objects in self._objects.items():
            if i in objects:
                values[field] = objects[i]
        return WorkRequest._make(values)

    def request_id(self, i: int) -> str:
        """The id of a request, by its entry."""
        return self._ids[self._id_starts[i] : self._id_starts[i + 1]].decode("utf-8", "surrogatepass")

    def entry_of(self, request_id: str) -> int | None:
        """The first entry of an id; None: no request has it."""
        sought, at = request_id.encode("utf-8", "surrogatepass"), -1
        while (at := self._ids.find(sought, at + 1)) >= 0:
            entry = bisect_left(self._id_starts, at)
            while (
                entry < self._length and self._id_starts[entry] == at
            ):  # several: before it there are empty ids
                if self._id_starts[entry + 1] == at + len(sought):
                    return entry
                entry += 1
        return None

    def with_value(self, name: str) -> Iterator[tuple[int, WorkRequest]]:
        """The requests of which a number is not None, with their entries."""
        field, objects = AT[name], self._objects.get(AT[name], {})
        column = next((column for number, column in self._columns if number == field), None)
        if column is None and self._first[field] is not None:
            yield from enumerate(self)
        elif column is not None or objects:
            for i in range(self._length):
                if i in objects or (column is not None and column[i] != NONE):
                    yield i, self._request(i)


ACCEPTS, DRAFTS = (AT[name] for name in RAGGED)
SUMS = AT["sums"]
DISCARDED, AFTER_IDLE = (AT[name] for name in FLAGS)


class _Arrays:
    """Arrays of one kind of numbers, one after the other."""

    def __init__(self) -> None:
        self.kind: np.dtype[Any] | None = None
        self._data = bytearray()
        self._starts = array("i", [0])
        self._values: NDArray[Any] | None = None
        """All arrays, once `end` was called."""

    def add(self, value: object) -> bool:
        """Keep an array; False: it is none of this kind, or empty. It is then empty here."""
        kept = isinstance(value, np.ndarray) and len(value) > 0 and self.kind in (None, value.dtype)
        if kept:
            assert isinstance(value, np.ndarray)
            self.kind = value.dtype
            self._data += value.tobytes()
        size = 1 if self.kind is None else self.kind.itemsize
        self._starts = extended(self._starts, (len(self._data) // size,))
        return kept

    def end(self) -> None:
        """No array comes after those so far."""
        if self.kind is not None:
            self._values = np.frombuffer(self._data, self.kind)

    def of(self, i: int, otherwise: Any) -> Any:
        """The array of an entry; `otherwise`: none was kept."""
        start, end = self._starts[i], self._starts[i + 1]
        return otherwise if start == end or self._values is None else self._values[start:end]

    def all(self, first: int, end: int, otherwise: Any) -> list[Any]:
        """The arrays of some entries in a row."""
        values, starts = self._values, self._starts[first : end + 1]
        if values is None:
            return [otherwise] * (end - first)
        return [values[start:stop] if stop > start else otherwise for start, stop in pairwise(starts)]

    def sums(self, first: int, end: int) -> Iterable[array[int] | None]:
        """The running sums of each of these arrays, each number plus one; a base is the same number too much in all."""
        starts = self._starts[first : end + 1]
        if self._values is None:
            return repeat(None)
        whole = np.zeros(starts[-1] - starts[0] + 1, np.int64)
        np.cumsum(self._values[starts[0] : starts[-1]], dtype=np.int64, out=whole[1:])
        whole += np.arange(len(whole))
        sums, base = array("q", whole.tobytes()), starts[0]
        return [sums[start - base : stop - base + 1] for start, stop in pairwise(starts)]


def requests_with(requests: Sequence[WorkRequest], name: str) -> Iterator[tuple[int, WorkRequest]]:
    """The requests of which a number is not None, with their entries."""
    if isinstance(requests, RequestColumns):
        yield from requests.with_value(name)
    else:
        yield from ((i, request) for i, request in enumerate(requests) if getattr(request, name) is not None)


def entry_of_request(requests: Sequence[WorkRequest], request_id: str) -> int | None:
    """The first entry of an id; None: no request has it."""
    if isinstance(requests, RequestColumns):
        return requests.entry_of(request_id)
    return next((i for i, request in enumerate(requests) if request.request_id == request_id), None)
