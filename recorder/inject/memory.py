"""A process's memory: its mappings, and reads and writes through /proc/PID/mem."""

from __future__ import annotations

import ctypes
import errno
import os
from types import TracebackType
from typing import NamedTuple

# os.pread would let go of our GIL, and another thread keep it, while a thread of the target stands still.
_libc = ctypes.PyDLL(None, use_errno=True)
_pread, _pwrite = _libc.pread64, _libc.pwrite64
for _function in (_pread, _pwrite):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]


class Mapping(NamedTuple):
    """One line of /proc/PID/maps. `path` is a file's path, or "[vdso]" and the like."""

    start: int
    end: int
    permissions: str
    offset: int
    path: str


def mappings(pid: int) -> list[Mapping]:
    """Every mapping that has a path, by address; PermissionError where reading another process is not allowed."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split(None, 5) for line in file.read().split("\n")]
    return [_mapping(*fields) for fields in lines if len(fields) > 5]


def _mapping(addresses: str, permissions: str, offset: str, _device: str, _inode: str, path: str) -> Mapping:
    start, _, end = addresses.partition("-")
    return Mapping(int(start, 16), int(end, 16), permissions, int(offset, 16), path)


class ProcessMemory:
    """Reads and writes at addresses of `pid`. Opening needs the same right as ptrace (proc(5)).

    A write reaches read-only pages too, as a debugger's does.
    """

    def __init__(self, pid: int, *, writable: bool = False) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)

    def __enter__(self) -> ProcessMemory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, address: int, size: int) -> bytes:
        """Exactly `size` bytes, or OSError."""
        room = ctypes.create_string_buffer(size)
        done = 0
        while done < size:
            done += _count(_pread(self._fd, ctypes.addressof(room) + done, size - done, address + done))
        return room.raw

    def read_u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write(self, address: int, data: bytes) -> None:
        room = ctypes.create_string_buffer(data, len(data))
        done = 0
        while done < len(data):
            done += _count(_pwrite(self._fd, ctypes.addressof(room) + done, len(data) - done, address + done))


def _count(result: int) -> int:
    if result > 0:
        return result
    number = ctypes.get_errno() if result < 0 else errno.EIO
    raise OSError(number, os.strerror(number))
