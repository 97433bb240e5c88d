"""Values in Thrift's compact protocol, as far as the metadata of a Parquet file need it.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

I32, I64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
TRUE, FALSE = 1, 2


class Encoded(NamedTuple):
    """A value: its type, and its bytes."""

    type: int
    data: bytes


def varint(number: int) -> bytes:
    """A number from 0 on, seven bits a byte, the lowest first."""
    if number < 0x80:
        return bytes((number,))
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


@lru_cache(512)
def i32(number: int) -> Encoded:
    """A number from 0 on that fits 32 bits."""
    return Encoded(I32, varint(number << 1))


def i64(number: int) -> Encoded:
    """A number from 0 on that fits 64 bits."""
    return Encoded(I64, varint(number << 1))


def binary(text: str) -> Encoded:
    """A text."""
    data = text.encode()
    return Encoded(BINARY, varint(len(data)) + data)


def items(values: Sequence[Encoded]) -> Encoded:
    """A list of values of one type."""
    size, kind = len(values), values[0].type
    head = bytes((size << 4 | kind,)) if size < 15 else bytes((0xF0 | kind,)) + varint(size)
    return Encoded(LIST, head + b"".join([value.data for value in values]))


def struct(*fields: tuple[int, Encoded | bool]) -> Encoded:
    """A struct of fields: the number of each, in ascending order, and its value."""
    data, last = [], 0
    for number, value in fields:
        if isinstance(value, Encoded):
            data += [bytes((number - last << 4 | value.type,)), value.data]
        else:
            data.append(bytes((number - last << 4 | (TRUE if value else FALSE),)))
        last = number
    return Encoded(STRUCT, b"".join(data) + b"\0")
