"""Finding functions in loaded images: what we find is what the loader finds, by either kind of hash table."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

import pytest

from fdtrace.recorder.inject.elf import exported
from fdtrace.recorder.inject.memory import Mapping, ProcessMemory, mappings
from fdtrace.recorder.inject.python import FUNCTIONS

NAMES = ("malloc", "free", "open", "read", "pthread_create", "nanosleep", "strlen", "qsort", "getenv", "time")
"""`strlen` and `time` are resolved at load time to one of several: their address is not the symbol's."""


def image_of(path_part: str) -> Mapping:
    found = next((m for m in mappings(os.getpid()) if path_part in m.path and m.offset == 0), None)
    if found is None:
        pytest.skip(f"no {path_part} is loaded here")
    return found


def address(function: object) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)  # type: ignore[arg-type]


def test_functions_of_the_c_library_are_where_the_loader_finds_them() -> None:
    libc = ctypes.CDLL(None)
    with ProcessMemory(os.getpid()) as memory:
        found = exported(memory, image_of("libc.so"), [*NAMES, "no_such_function", ""])
    assert set(found) <= set(NAMES)
    for name in ("malloc", "free", "read", "nanosleep", "qsort", "getenv"):
        assert found[name] == address(getattr(libc, name)), name


def test_functions_of_this_python_are_where_ctypes_finds_them() -> None:
    with ProcessMemory(os.getpid()) as memory:
        for image in {
            m.path: m for m in reversed(mappings(os.getpid())) if m.offset == 0 and "/" in m.path
        }.values():
            found = exported(memory, image, FUNCTIONS)
            if len(found) == len(FUNCTIONS):
                break
        else:
            pytest.fail("no image of this process has CPython's functions")
    for name in FUNCTIONS:
        assert found[name] == address(getattr(ctypes.pythonapi, name)), name


def sysv_hash(name: bytes) -> int:
    """The System V gABI, "Hash Table", as its figure has it."""
    h = 0
    for byte in name:
        h = (h << 4) + byte
        g = h & 0xF0000000
        if g:
            h ^= g >> 24
        h &= ~g
    return h & 0xFFFFFFFF


class Image:
    """A loaded shared object of x86-64 with these symbols (0: not defined here) and System V's hash table alone."""

    def __init__(
        self, symbols: dict[str, int], buckets: int, *, absolute: bool = False, base: int = 0
    ) -> None:
        self.room = mmap.mmap(-1, 1 << 16)
        self.start = address(ctypes.byref(ctypes.c_char.from_buffer(self.room)))
        names = list(symbols)
        text = b"\0" + b"".join(name.encode() + b"\0" for name in names)
        table = bytes(24)
        for name, value in symbols.items():
            at = text.index(b"\0" + name.encode() + b"\0") + 1
            table += struct.pack("<IBBHQQ", at, 0x12, 0, 1 if value else 0, value, 8)
        heads, chain = [0] * buckets, [0] * (len(names) + 1)
        for i, name in enumerate(names, 1):
            bucket = sysv_hash(name.encode()) % buckets
            chain[i], heads[bucket] = heads[bucket], i
        hashes = struct.pack(f"<II{buckets}I{len(chain)}I", buckets, len(chain), *heads, *chain)
        symbols_at, text_at, hash_at, dynamic_at = 0x1000, 0x2000, 0x3000, 0x400
        shift = self.start - base if absolute else 0
        dynamic = b"".join(
            struct.pack("<QQ", tag, base + at + shift)
            for tag, at in ((4, hash_at), (5, text_at), (6, symbols_at))
        ) + bytes(16)
        programs = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, 0x8000, 0x8000, 0x1000)
        programs += struct.pack(
            "<IIQQQQQQ", 2, 6, dynamic_at, base + dynamic_at, 0, len(dynamic), len(dynamic), 8
        )
        header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
        for at, data in ((0, header + programs), (dynamic_at, dynamic), (symbols_at, table), (text_at, text)):
            self.put(at, data)
        self.put(hash_at, hashes)

    def put(self, at: int, data: bytes) -> None:
        self.room[at : at + len(data)] = data

    def find(self, *names: str) -> dict[str, int]:
        """What is found, as values of the symbols."""
        mapping = Mapping(self.start, self.start + (1 << 16), "r-xp", 0, "/lib/made.so")
        with ProcessMemory(os.getpid()) as memory:
            return {name: at - self.start for name, at in exported(memory, mapping, names).items()}


@pytest.mark.parametrize("absolute", [False, True], ids=["as musl leaves it", "as glibc's loader does"])
@pytest.mark.parametrize("buckets", [1, 3, 97])
def test_the_system_v_hash_table_alone_is_enough(buckets: int, absolute: bool) -> None:
    symbols = {f"function_{i}_{'x' * i}": 0x100 + 16 * i for i in range(40)} | {"undefined": 0}
    image = Image(symbols, buckets, absolute=absolute)
    assert image.find(*symbols, "another", "function_1") == {n: v for n, v in symbols.items() if v}


def test_addresses_count_from_the_first_segment() -> None:
    image = Image({"function": 0x40_0123}, 2, base=0x40_0000)
    assert image.find("function") == {"function": 0x123}


@pytest.mark.parametrize(
    ("at", "data"),
    [
        (0, b"\x7fELG"),
        (4, b"\x01"),
        (5, b"\x02"),
        (18, b"\xb7"),
        (0x3000, bytes(8)),
        (0x400, bytes(48)),
        (32, b"\xff" * 8),
    ],
    ids=["no ELF", "32 bits", "big endian", "ARM", "no buckets", "no tables", "headers elsewhere"],
)
def test_what_is_no_image_for_us_has_nothing(at: int, data: bytes) -> None:
    image = Image({"function": 0x100}, 2)
    assert image.find("function")
    image.put(at, data)
    assert image.find("function") == {}


def test_a_chain_that_goes_round_ends() -> None:
    image = Image({"function": 0x100, "other": 0x200}, 1)
    image.put(0x3000 + 8, struct.pack("<I", 1))
    image.put(0x3000 + 12, struct.pack("<III", 0, 1, 1))
    assert image.find("missing") == {}
