"""The way back of a borrowed thread before its stub is in place: a signal frame, to return from.

Until a page is mapped for it, the thread runs a system call of ours with nothing behind it to return to. Were
this tool killed just then, the thread would run on into nowhere. So the call is made through a `syscall; ret`
of the target's C library, with the library's own `rt_sigreturn` as the return address: left alone, the thread
restores everything that it was, by itself.

What is lost in those 0.1 ms is the time that a wait had left: it begins again. Where the wait had been
interrupted before (it is in restart_syscall) it ends with EINTR, as nothing tells which call it was.

Layout: struct rt_sigframe of the kernel's arch/x86/include/asm/sigframe.h, and asm/sigcontext.h.
"""

from __future__ import annotations

import errno
import os
import struct

from fdtrace.recorder.inject.memory import Mapping, ProcessMemory
from fdtrace.recorder.inject.parked import call_of, is_between_calls
from fdtrace.recorder.inject.ptrace import Registers

_SYSCALL_RET = b"\x0f\x05\xc3"
_SIGRETURN = b"\x48\xc7\xc0\x0f\x00\x00\x00\x0f\x05"  # mov rax, 15 / syscall: __restore_rt of glibc and musl
_LIBRARIES = ("libc.so", "libc-", "ld-musl", "libpthread")
_UC_FLAGS = 7  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_MAGIC_1, _MAGIC_2 = 0x46505853, 0x46505845
_SOFTWARE_BYTES = 464
_RED_ZONE = 512
_PIECE = 1 << 17
_ORDER = [
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
    "rdi",
    "rsi",
    "rbp",
    "rbx",
    "rdx",
    "rax",
    "rcx",
    "rsp",
    "rip",
    "eflags",
]


def find_instructions(pid: int, maps: list[Mapping]) -> tuple[int, int]:
    """Addresses in `maps` of a `syscall; ret` and of the C library's sigreturn; (0, 0) where either is missing."""
    exe = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    call = back = 0
    with ProcessMemory(pid) as memory:
        for mapping in maps:
            name = os.path.basename(mapping.path)
            if "x" not in mapping.permissions or not (name.startswith(_LIBRARIES) or name == exe):
                continue
            call = call or _find(memory, mapping, _SYSCALL_RET)
            back = back or _find(memory, mapping, _SIGRETURN)
            if call and back:
                return call, back
    return 0, 0


def _find(memory: ProcessMemory, mapping: Mapping, code: bytes) -> int:
    """Where a mapping first has these bytes, 0 where it has not; near its start, mostly: a piece after another."""
    for start in range(mapping.start, mapping.end, _PIECE):
        end = min(mapping.end, start + _PIECE + len(code) - 1)
        at = memory.read(start, end - start).find(code)
        if at >= 0:
            return start + at
    return 0


def lay_frame(
    memory: ProcessMemory, back: int, registers: Registers, extended_state: bytes, signal_mask: int
) -> int:
    """Write the frame onto the thread's stack, below what it uses; the stack pointer to make the call with.

    The thread's own stack pointer where it cannot be written: a main thread's stack that has not grown that
    far.
    """
    state = _signal_state(extended_state)
    state_at = (registers.rsp - _RED_ZONE - len(state)) & ~63
    frame = struct.pack("<Q", back) + _context(registers, state_at, signal_mask)
    stack = (state_at - len(frame)) & ~15
    try:
        memory.write(state_at, state)
        memory.write(stack, frame)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EFAULT):
            raise
        return registers.rsp
    return stack


def _signal_state(extended_state: bytes) -> bytes:
    """The extended state as a signal frame holds it: marked at byte 464 and at its end."""
    features = struct.unpack_from("<Q", extended_state, _SOFTWARE_BYTES)[0]
    size = len(extended_state)
    marks = struct.pack("<IIQI28x", _MAGIC_1, size + 4, features, size)
    head, tail = extended_state[:_SOFTWARE_BYTES], extended_state[_SOFTWARE_BYTES + len(marks) :]
    return head + marks + tail + struct.pack("<I", _MAGIC_2)


def _context(registers: Registers, state_at: int, signal_mask: int) -> bytes:
    """struct ucontext; a thread that waited calls again."""
    values = {name: getattr(registers, name) for name in _ORDER}
    call = call_of(registers)
    if call is not None and not is_between_calls(registers):
        values["rip"], values["rax"] = registers.rip - 2, call
    head = struct.pack("<QQ24x", _UC_FLAGS, 0)
    segments = struct.pack("<HHHH", registers.cs & 0xFFFF, 0, 0, registers.ss & 0xFFFF)
    general = b"".join(struct.pack("<Q", values[name]) for name in _ORDER)
    tail = struct.pack("<QQQQQ64xQ", 0, 0, 0, 0, state_at, signal_mask)
    return head + general + segments + tail
