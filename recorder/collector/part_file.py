"""Writes a part: a Parquet file of one row group, without compression and statistics.

DuckDB plans a query for each file that it writes. With four or five files of few rows, that took most of a publication.
DuckDB reads these files as its own, and it writes the large parts into which they are merged. The format:
https://parquet.apache.org/docs/file-format/ (data pages of version 1, metadata in Thrift's compact protocol).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.collector.tables import CODED, TEXT, CodedNames, check_limits, unknown_of
from fdtrace.recorder.collector.thrift import Encoded, binary, i32, i64, items, struct, varint
from fdtrace.recorder.schema_tables import Column, Table
from fdtrace.recorder.trace.column_values import ColumnArrays

MAGIC = b"PAR1"

PLAIN, RLE, RLE_DICTIONARY = 0, 3, 8
"""Encodings."""

DATA_PAGE, DICTIONARY_PAGE = 0, 2
UNCOMPRESSED = 0

BOOLEAN, INT32, INT64, DOUBLE, BYTE_ARRAY = 0, 1, 2, 5, 6
PHYSICAL = {
    "BOOLEAN": (BOOLEAN, "?"), "INTEGER": (INT32, "<i4"), "BIGINT": (INT64, "<i8"), "TIMESTAMP_NS": (INT64, "<i8"),
    "DOUBLE": (DOUBLE, "<f8"), "VARCHAR": (BYTE_ARRAY, ""), "UBIGINT[]": (INT64, "<u8"),
}  # fmt: skip
"""Parquet's type of each of the schema's types, and numpy's type of a value."""

OPTIONAL, REPEATED = 1, 2
UTF8, LIST, UINT_64 = 0, 3, 14

NANOSECONDS = struct((8, struct((1, False), (2, struct((3, struct()))))))
"""The logical type of a TIMESTAMP_NS: not adjusted to UTC, in nanoseconds."""


class ColumnData(NamedTuple):
    """A column's only data page: `levels` say which values are there (and of a list, to which row they belong).

    `dictionary`: the values to which the numbers in `values` refer, and how many they are.
    """

    num_values: int
    levels: bytes
    values: bytes
    dictionary: tuple[bytes, int] | None = None


def write_part(path: Path, table: Table, columns: ColumnArrays) -> None:
    """Write rows of a table, of the decoder's columns (see `tables.values`).

    Raises:
        ValueError: a number does not fit its column.
        OSError: the file cannot be written. Nothing is left of it.
    """
    num_rows = len(next(iter(columns.values())))
    pieces, chunks, offset = [MAGIC], [], len(MAGIC)
    for column in table.columns:
        data = _encoded(column, columns, num_rows)
        pages, chunk = _chunk(column, data, offset)
        pieces += pages
        chunks.append(chunk)
        offset += sum(map(len, pages))
    group = struct((1, items(chunks)), (2, i64(offset - len(MAGIC))), (3, i64(num_rows)))
    fields = (1, i32(1)), (2, _schema(table)), (3, i64(num_rows)), (4, items([group])), (6, binary("fdtrace"))
    about = struct(*fields)
    pieces += [about.data, len(about.data).to_bytes(4, "little"), MAGIC]
    with removed_on_failure(path):
        path.write_bytes(b"".join(pieces))


@contextlib.contextmanager
def removed_on_failure(path: Path) -> Iterator[None]:
    """Remove the file if writing it fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


@lru_cache
def _schema(table: Table) -> Encoded:
    """The tree of all columns, as a list."""
    elements = [struct((4, binary("schema")), (5, i32(len(table.columns))))]
    for column in table.columns:
        kind, name = i32(PHYSICAL[column.type][0]), binary(column.name)
        if column.type.endswith("[]"):
            elements += [
                struct((3, i32(OPTIONAL)), (4, name), (5, i32(1)), (6, i32(LIST))),
                struct((3, i32(REPEATED)), (4, binary("list")), (5, i32(1))),
                struct((1, kind), (3, i32(OPTIONAL)), (4, binary("element")), (6, i32(UINT_64))),
            ]
        else:
            meaning = {"VARCHAR": (6, i32(UTF8)), "TIMESTAMP_NS": (10, NANOSECONDS)}.get(column.type)
            leaf = (1, kind), (3, i32(OPTIONAL)), (4, name)
            elements.append(struct(*leaf) if meaning is None else struct(*leaf, meaning))
    return items(elements)


def _chunk(column: Column, data: ColumnData, offset: int) -> tuple[list[bytes], Encoded]:
    """The pages of a column, which begin at an offset in the file, and their description."""
    pages: list[bytes] = []
    encoding, places = PLAIN, [(9, i64(offset))]
    if data.dictionary is not None:
        values, count = data.dictionary
        header = struct((1, i32(count)), (2, i32(PLAIN)))
        pages += [_page(DICTIONARY_PAGE, len(values), (7, header)), values]
        encoding, places = RLE_DICTIONARY, [(9, i64(offset + sum(map(len, pages)))), (11, i64(offset))]
    size = len(data.levels) + len(data.values)
    pages += [_page(DATA_PAGE, size, (5, _data_header(data.num_values, encoding))), data.levels, data.values]
    total = i64(sum(map(len, pages)))
    chunk = struct(*_constants(column, encoding), (5, i64(data.num_values)), (6, total), (7, total), *places)
    return pages, struct((2, i64(0)), (3, chunk))


@lru_cache(512)
def _constants(column: Column, encoding: int) -> tuple[tuple[int, Encoded], ...]:
    """What the description of a column always says."""
    path = [column.name, "list", "element"] if column.type.endswith("[]") else [column.name]
    return (
        (1, i32(PHYSICAL[column.type][0])), (2, items([i32(encoding), i32(RLE)])),
        (3, items([binary(name) for name in path])), (4, i32(UNCOMPRESSED)),
    )  # fmt: skip


@lru_cache(16)
def _data_header(num_values: int, encoding: int) -> Encoded:
    return struct((1, i32(num_values)), (2, i32(encoding)), (3, i32(RLE)), (4, i32(RLE)))


def _page(kind: int, size: int, header: tuple[int, Encoded]) -> bytes:
    return struct((1, i32(kind)), (2, i32(size)), (3, i32(size)), header).data


def _encoded(column: Column, columns: ColumnArrays, num_rows: int) -> ColumnData:
    coded = CODED.get(column.name)
    if coded is not None and coded.source in columns:
        return _names(coded, columns[coded.source])
    if column.name not in columns:
        return _nothing(num_rows)
    if column.type.endswith("[]"):
        return _lists(column, columns[column.name].tolist())
    if column.type in TEXT:
        return _texts(columns[column.name].tolist())
    return _numbers(column, columns[column.name])


def _nothing(num_rows: int) -> ColumnData:
    return ColumnData(num_rows, _sized(_run(num_rows, 0)), b"")


def _numbers(column: Column, numbers: NDArray[Any]) -> ColumnData:
    physical, kind = PHYSICAL[column.type]
    least, most, unknown = numbers.min(), numbers.max(), unknown_of(column)
    check_limits(column, least, most)
    if least == most:
        if least == unknown:
            return _nothing(len(numbers))
        if physical != BOOLEAN:
            one = numbers[:1].astype(kind).tobytes(), 1
            return ColumnData(len(numbers), _sized(_run(len(numbers), 1)), b"\1" + _run(len(numbers), 0), one)
    levels, present = _sized(_run(len(numbers), 1)), numbers
    if least <= unknown:
        is_known = numbers != unknown
        levels, present = _sized(_packed(is_known)), numbers[is_known]
    values = np.packbits(present != 0, bitorder="little") if physical == BOOLEAN else present.astype(kind)
    return ColumnData(len(numbers), levels, values.tobytes())


def _texts(texts: list[str | None]) -> ColumnData:
    known = [text.encode() for text in texts if text is not None]
    if not known:
        return _nothing(len(texts))
    levels = _run(len(texts), 1)
    if len(known) < len(texts):
        levels = _packed(np.array([text is not None for text in texts]))
    return ColumnData(len(texts), _sized(levels), _byte_arrays(known))


def _names(coded: CodedNames, codes: NDArray[Any]) -> ColumnData:
    names = coded.names
    places = codes.astype(np.int64) - coded.first
    is_known = (places >= 0) & (places < len(names))
    numbers = places[is_known]
    if not len(numbers):
        return _nothing(len(codes))
    width = max(1, (len(names) - 1).bit_length())
    levels = _run(len(codes), 1) if len(numbers) == len(codes) else _packed(is_known)
    least = int(numbers[0])
    packed = _run(len(numbers), least) if (numbers == least).all() else _packed(numbers, width)
    dictionary = _byte_arrays([name.encode() for name in names]), len(names)
    return ColumnData(len(codes), _sized(levels), bytes([width]) + packed, dictionary)


def _lists(column: Column, texts: list[str]) -> ColumnData:
    """Lists of numbers, as texts with commas; an empty one is NULL."""
    numbers: list[int] = []
    repeats: list[int] = []
    defined: list[int] = []
    for text in texts:
        values = text.split(",") if text else []
        numbers += map(int, values)
        repeats += [0, *[1] * (len(values) - 1)]
        defined += [3] * len(values) or [0]
    if not numbers:
        return ColumnData(len(texts), 2 * _sized(_run(len(texts), 0)), b"")
    levels = _sized(_packed(np.array(repeats))) + _sized(_packed(np.array(defined), 2))
    return ColumnData(len(repeats), levels, np.array(numbers, PHYSICAL[column.type][1]).tobytes())


def _byte_arrays(texts: list[bytes]) -> bytes:
    return b"".join([part for text in texts for part in (len(text).to_bytes(4, "little"), text)])


def _run(count: int, value: int) -> bytes:
    """So many times the same number of at most 8 bits."""
    return varint(count << 1) + bytes([value])


def _packed(numbers: NDArray[Any], width: int = 1) -> bytes:
    """Numbers of `width` bits."""
    bits = numbers if width == 1 else numbers[:, None] >> np.arange(width) & 1
    groups = (len(numbers) + 7) // 8  # of eight numbers: `width` bytes each
    return varint(groups << 1 | 1) + np.packbits(bits, bitorder="little").tobytes().ljust(
        groups * width, b"\0"
    )


def _sized(levels: bytes) -> bytes:
    return len(levels).to_bytes(4, "little") + levels
