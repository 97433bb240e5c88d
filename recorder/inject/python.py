"""Find CPython in a process: which loaded image holds its C API, the functions we call, and its version."""

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
    """A process's CPython. `version` is (major, minor), None before 3.11, which does not tell."""

    image: str
    functions: MappingType[str, int]
    version: tuple[int, int] | None


def find_python(pid: int, maps: list[Mapping]) -> Python | None:
    """The process's CPython, by its `maps`; None where it has none; PermissionError where its memory cannot be read."""
    images = _images(pid, maps)
    with ProcessMemory(pid) as memory:
        for image in images:
            # One name first: hundreds of libraries are loaded, and all but one lack it.
            if not exported(memory, image, FUNCTIONS[:1]):
                continue
            found = exported(memory, image, (*FUNCTIONS, _VERSION))
            if all(name in found for name in FUNCTIONS):
                functions = {name: found[name] for name in FUNCTIONS}
                return Python(image.path, functions, _version(memory, found.get(_VERSION)))
    return None


def _images(pid: int, maps: list[Mapping]) -> list[Mapping]:
    """The first mapping of each file, likely ones first: libpython, the executable, names with python, the
    rest.
    """
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
