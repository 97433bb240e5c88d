"""Find exported functions in a loaded ELF image, by its hash table, in the process's memory.

The image in memory rather than the file: the file may have been replaced or deleted since (a package
upgrade), may lie in a container's file system, and its section headers may be stripped. Layouts: elf(5) and
the System V gABI.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from fdtrace.recorder.inject.memory import Mapping, ProcessMemory

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5
_ELFCLASS64, _LITTLE_ENDIAN, _EM_X86_64 = 2, 1, 62
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class _Tables:
    """Absolute addresses of the dynamic tables; 0 where the image has none."""

    symbols: int
    strings: int
    gnu_hash: int
    sysv_hash: int


def exported(memory: ProcessMemory, image: Mapping, names: Iterable[str]) -> dict[str, int]:
    """Addresses of those of `names` that the image mapped at `image` defines; empty for what is no ELF image.

    `image` is the mapping with the file's offset 0.
    """
    try:
        header = memory.read(image.start, 64)
        if header[:4] != b"\x7fELF" or header[4] != _ELFCLASS64 or header[5] != _LITTLE_ENDIAN:
            return {}
        if struct.unpack_from("<H", header, 18)[0] != _EM_X86_64:
            return {}
        bias, dynamic = _program_headers(memory, image.start, header)
        tables = _dynamic_tables(memory, bias, dynamic) if dynamic else None
        if tables is None:
            return {}
        found = {name: _lookup(memory, tables, name.encode()) for name in names}
    except (OSError, struct.error):
        return {}
    return {name: bias + value for name, value in found.items() if value}


def _program_headers(memory: ProcessMemory, base: int, header: bytes) -> tuple[int, int]:
    """(bias added to every address in the file, address of the dynamic section or 0)."""
    offset = struct.unpack_from("<Q", header, 32)[0]
    size, count = struct.unpack_from("<HH", header, 54)
    raw = memory.read(base + offset, size * count)
    lowest, dynamic = None, 0
    for at in range(0, size * count, size):
        kind, _flags, _offset, address = struct.unpack_from("<IIQQ", raw, at)
        if kind == _PT_LOAD and (lowest is None or address < lowest):
            lowest = address
        elif kind == _PT_DYNAMIC:
            dynamic = address
    bias = base - ((lowest or 0) & ~0xFFF)
    return bias, bias + dynamic if dynamic else 0


def _dynamic_tables(memory: ProcessMemory, bias: int, dynamic: int) -> _Tables | None:
    entries: dict[int, int] = {}
    for at in range(dynamic, dynamic + 16 * 256, 16):
        tag, value = struct.unpack("<QQ", memory.read(at, 16))
        if tag == 0:
            break
        entries.setdefault(tag, value)

    def address(tag: int) -> int:
        value = entries.get(tag, 0)
        # glibc's loader has made these absolute, musl's leaves them as in the file.
        return value if value == 0 or value >= bias else bias + value

    tables = _Tables(address(_DT_SYMTAB), address(_DT_STRTAB), address(_DT_GNU_HASH), address(_DT_HASH))
    usable = tables.symbols and tables.strings and (tables.gnu_hash or tables.sysv_hash)
    return tables if usable else None


def _lookup(memory: ProcessMemory, tables: _Tables, name: bytes) -> int:
    """The symbol's value, 0 where the image does not define it."""
    find = _gnu_candidates if tables.gnu_hash else _sysv_candidates
    for index in find(memory, tables, name):
        text, _info, _other, section, value, _size = struct.unpack(
            "<IBBHQQ", memory.read(tables.symbols + 24 * index, 24)
        )
        if section and memory.read(tables.strings + text, len(name) + 1) == name + b"\0":
            return int(value)
    return 0


def _gnu_candidates(memory: ProcessMemory, tables: _Tables, name: bytes) -> Iterable[int]:
    wanted = 5381
    for byte in name:
        wanted = (wanted * 33 + byte) & _MASK
    num_buckets, first, num_bloom, _shift = struct.unpack("<IIII", memory.read(tables.gnu_hash, 16))
    if not num_buckets:
        return
    buckets = tables.gnu_hash + 16 + 8 * num_bloom
    index = struct.unpack("<I", memory.read(buckets + 4 * (wanted % num_buckets), 4))[0]
    chain = buckets + 4 * num_buckets
    while index >= first:
        value = struct.unpack("<I", memory.read(chain + 4 * (index - first), 4))[0]
        if value | 1 == wanted | 1:
            yield index
        if value & 1:
            return
        index += 1


def _sysv_candidates(memory: ProcessMemory, tables: _Tables, name: bytes) -> Iterable[int]:
    wanted = 0
    for byte in name:
        wanted = (wanted << 4) + byte
        high = wanted & 0xF0000000
        wanted = (wanted ^ (high >> 24)) & ~high & _MASK
    num_buckets, num_chains = struct.unpack("<II", memory.read(tables.sysv_hash, 8))
    if not num_buckets:
        return
    at = tables.sysv_hash + 8 + 4 * (wanted % num_buckets)
    for _ in range(num_chains):
        index = struct.unpack("<I", memory.read(at, 4))[0]
        if not index:
            return
        yield index
        at = tables.sysv_hash + 8 + 4 * (num_buckets + index)
