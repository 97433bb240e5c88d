"""ptrace of one thread on x86_64 Linux: ptrace(2), with numbers and layouts of <sys/ptrace.h> and <sys/user.h>.

All calls keep our own GIL (PyDLL): another thread of this tool must not delay the one that holds a thread of somebody's
server. A tracee belongs to the *thread* that seized it. When that thread ends, the kernel detaches the tracee.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time

PTRACE_CONT, PTRACE_DETACH, PTRACE_SYSCALL = 7, 17, 24
PTRACE_GETREGS, PTRACE_SETREGS = 12, 13
PTRACE_GETEVENTMSG, PTRACE_GETREGSET, PTRACE_SETREGSET = 0x4201, 0x4204, 0x4205
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_GETSIGMASK, PTRACE_SETSIGMASK = 0x420A, 0x420B
_PTRACE_O_TRACESYSGOOD = 1
_NT_X86_XSTATE = 0x202
_XSTATE_ROOM = 1 << 15  # AMX, the largest state that exists, needs 11 KiB

SYSCALL_STOP = signal.SIGTRAP | 0x80
EVENT_STOP = 128
"""The event of a stop by PTRACE_INTERRUPT (with SIGTRAP), or of a group stop (with the stopping signal)."""

_NUM_LOOKS = 1000
_P_PID, _WNOHANG, _WSTOPPED, _WALL = 1, 1, 2, 0x40000000
_SIGINFO_SIZE, _SI_PID, _SI_STATUS = 128, 16, 24

_libc = ctypes.PyDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_waitid = _libc.waitid
_waitid.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_int]
_usleep = _libc.usleep


def ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    """Make one request. Raises OSError with the kernel's errno."""
    ctypes.set_errno(0)
    if _ptrace(request, tid, address, data) == -1 and ctypes.get_errno():
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace {request:#x} of thread {tid}")


_REGISTER_NAMES = [
    "r15",
    "r14",
    "r13",
    "r12",
    "rbp",
    "rbx",
    "r11",
    "r10",
    "r9",
    "r8",
    "rax",
    "rcx",
    "rdx",
    "rsi",
    "rdi",
    "orig_rax",
    "rip",
    "cs",
    "eflags",
    "rsp",
    "ss",
    "fs_base",
    "gs_base",
    "ds",
    "es",
    "fs",
    "gs",
]


class Registers(ctypes.Structure):
    """struct user_regs_struct. `orig_rax` is the system call that the thread is in; -1 (as unsigned) for none."""

    rax: int
    rdi: int
    rsi: int
    rdx: int
    r10: int
    r8: int
    r9: int
    rip: int
    rsp: int
    eflags: int
    orig_rax: int
    cs: int
    ss: int
    _fields_ = [(name, ctypes.c_uint64) for name in _REGISTER_NAMES]

    def copy(self) -> Registers:
        return Registers.from_buffer_copy(self)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class WaitLimit:
    """Over after `seconds` and at least 1000 checks.

    The checks are counted because a machine may be suspended: then the time passes, but nobody has waited.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self.looks = 0

    def is_over(self) -> bool:
        self.looks += 1
        return self.looks > _NUM_LOOKS and time.monotonic() > self._deadline


class Tracee:
    """One seized thread. Any method may raise ProcessLookupError: the thread has ended, or is not stopped."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        ptrace(PTRACE_SEIZE, tid, 0, _PTRACE_O_TRACESYSGOOD)

    def interrupt(self) -> None:
        ptrace(PTRACE_INTERRUPT, self.tid)

    def resume(self, request: int = PTRACE_CONT, deliver: int = 0) -> None:
        ptrace(request, self.tid, 0, deliver)

    def detach(self) -> None:
        ptrace(PTRACE_DETACH, self.tid)

    def registers(self) -> Registers:
        registers = Registers()
        ptrace(PTRACE_GETREGS, self.tid, 0, ctypes.addressof(registers))
        return registers

    def set_registers(self, registers: Registers) -> None:
        ptrace(PTRACE_SETREGS, self.tid, 0, ctypes.addressof(registers))

    def extended_state(self) -> bytes:
        """Floating point, vector and other extended registers, in the layout of XSAVE."""
        buffer = ctypes.create_string_buffer(_XSTATE_ROOM)
        vector = _Iovec(ctypes.addressof(buffer), len(buffer))
        ptrace(PTRACE_GETREGSET, self.tid, _NT_X86_XSTATE, ctypes.addressof(vector))
        return buffer.raw[: vector.size]

    def set_extended_state(self, state: bytes) -> None:
        buffer = ctypes.create_string_buffer(state, len(state))
        vector = _Iovec(ctypes.addressof(buffer), len(buffer))
        ptrace(PTRACE_SETREGSET, self.tid, _NT_X86_XSTATE, ctypes.addressof(vector))

    def signal_mask(self) -> int:
        """Blocked signals, signal n at bit n - 1."""
        mask = ctypes.c_uint64()
        ptrace(PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.value

    def set_signal_mask(self, mask: int) -> None:
        ptrace(PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(ctypes.c_uint64(mask)))

    def poll_stop(self) -> tuple[int, int] | None:
        """(signal, event) of a stop that was not reported yet; None while the thread runs.

        It asks only for stops, never for exits. So if the target is our own child, its exit status stays there for the
        code that waits for the child.
        """
        info = ctypes.create_string_buffer(_SIGINFO_SIZE)
        if _waitid(_P_PID, self.tid, ctypes.addressof(info), _WSTOPPED | _WNOHANG | _WALL) != 0:
            raise ProcessLookupError(f"thread {self.tid} has ended")
        if not int.from_bytes(info.raw[_SI_PID : _SI_PID + 4], "little"):
            return None
        status = int.from_bytes(info.raw[_SI_STATUS : _SI_STATUS + 4], "little")
        return status & 0xFF, status >> 8

    def wait_stop(self, timeout: float) -> tuple[int, int] | None:
        """(signal, event) of the next stop; None after `timeout` seconds."""
        patience = WaitLimit(timeout)
        while (stop := self.poll_stop()) is None:
            if patience.is_over():
                return None
            if patience.looks > 50:
                doze()
            if patience.looks % 100 == 0 and self._has_ended():
                raise ProcessLookupError(f"thread {self.tid} has ended")
        return stop

    def _has_ended(self) -> bool:
        try:
            with open(f"/proc/{self.tid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True


def doze() -> None:
    """Sleep 20 µs: short compared with the time a thread may be held, long enough for the target to use our core."""
    _usleep(20)
