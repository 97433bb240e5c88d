"""Finds CPython in a process: the loaded image that has its C API, the functions that we call, and its version."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping as MappingType
from dataclasses import dataclass

from fdtrace.recorder.inject.elf import exported
from fdtrace.recorder.inject.memory import Mapping, ProcessMemory

FUNCTIONS = (
    "PyGILState_Ensure",
    "PyGILState_Release",
    "PyRun_SimpleString",
    "PyThread_start_new_thread",
    "Py_IsInitialized",
    "Py_AddPendingCall",
)
_VERSION = "Py_Version"  # exported since 3.11: PY_VERSION_HEX


@dataclass(frozen=True)
class Python:
    """A process's CPython. `version` is (major, minor); None before 3.11, which does not export it."""

    image: str
    functions: MappingType[str, int]
    version: tuple[int, int] | None


def find_python(pid: int, maps: list[Mapping]) -> Python | None:
    """The process's CPython, found in its `maps`; None if it has none.

    Raises:
        PermissionError: the memory of the process cannot be read.
    """
    images = _images(pid, maps)
    with ProcessMemory(pid) as memory:
        for image in images:
            # Look for one name first: hundreds of libraries are loaded, and all but one lack it.
            if not exported(memory, image, FUNCTIONS[:1]):
                continue
            addresses = exported(memory, image, (*FUNCTIONS, _VERSION))
            if all(name in addresses for name in FUNCTIONS):
                functions = {name: addresses[name] for name in FUNCTIONS}
                return Python(image.path, functions, _version(memory, addresses.get(_VERSION)))
    return None


def _images(pid: int, maps: list[Mapping]) -> list[Mapping]:
    """The first mapping of each file, likely ones first: libpython, the executable, "python" in the name, others."""
    exe = os.readlink(f"/proc/{pid}/exe")
    starts = {m.path: m for m in reversed(maps) if m.offset == 0 and m.path.startswith("/")}

    def likelihood(image: Mapping) -> int:
        name = os.path.basename(image.path)
        if "libpython" in name:
            return 0
        if image.path == exe:
            return 1
        return 2 if "python" in name else 3

    return sorted(starts.values(), key=likelihood)


def _version(memory: ProcessMemory, address: int | None) -> tuple[int, int] | None:
    if address is None:
        return None
    number = struct.unpack("<Q", memory.read(address, 8))[0]
    return (number >> 24) & 0xFF, (number >> 16) & 0xFF
