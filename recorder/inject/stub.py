"""The machine code that a borrowed thread runs: it starts a thread, says so, and waits to be restored.

It does not end in a trap. It waits in a ppoll of one second, in which its tracer finds and restores it. If the tracer
was killed in that time, the stub restores the thread itself, and the thread goes on with its own work. So the program
is not harmed even if we die at this point. (It is ppoll, because an interrupted ppoll does not change the kernel's
restart record of the thread.)
One page or more, readable and executable. It is not writable, because programs may forbid pages that are both:
    0x000  the borrowed thread: call, mark, wait, restore itself
    0x180  the new thread: take the GIL, run the text
    0x200  the pending call: start the new thread
    0x240  what restoring needs: registers and signal mask
    0x300  the extended state (XSAVE), then the text
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping

from fdtrace.recorder.inject.ptrace import Registers
from fdtrace.recorder.inject.thread_choice import reissued

_NEW_THREAD, _PENDING_CALL, _SAVED, _XSTATE = 0x180, 0x200, 0x240, 0x300
_PAGE = 4096
_WAIT_SECONDS = 1
_SYS_PPOLL, _SYS_RT_SIGPROCMASK, _SIG_SETMASK = 271, 14, 2

# Register numbers of the instruction set, in the order in which they are saved from `_SAVED` on.
_NUMBERS = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rbp": 5, "rsi": 6, "rdi": 7} | {
    f"r{n}": n for n in range(8, 16)
}
_AT = {name: _SAVED + 8 * i for i, name in enumerate([*_NUMBERS, "rsp", "rip", "eflags", "mask"])}

STACK_ROOM = 512
"""Bytes between the borrowed thread's stack pointer and ours: more than the red zone of the ABI (128)."""
MARK_AT, RESULT_AT = 0, 8
"""Offsets from our stack pointer at which the stub leaves the mark and the call's result."""


def stub_size(extended_state: bytes, text: bytes) -> int:
    """Bytes to map: whole pages."""
    return -(-(_text_at(extended_state) + len(text) + 1) // _PAGE) * _PAGE


def stack_pointer(registers: Registers) -> int:
    """The stack pointer with which to start the stub."""
    return (registers.rsp - STACK_ROOM) & ~15


def build_stub(
    page: int,
    functions: Mapping[str, int],
    saved: Registers,
    extended_state: bytes,
    signal_mask: int,
    *,
    text: bytes,
    pending: bool,
    mark: int,
) -> bytes:
    """The contents of the mapping at `page`. It starts at offset 0 with `stack_pointer`, and sets `mark` when it has
    called.

    `pending`: it queues the text for the main thread's next safe point instead of starting a thread for it.
    """
    text_address = page + _text_at(extended_state)
    new_thread = _new_thread(functions, text_address)
    start = _call(functions["PyThread_start_new_thread"], page + _NEW_THREAD, 0)
    queue = _call(functions["Py_AddPendingCall"], page + _PENDING_CALL, 0)
    first = _borrowed_thread(queue if pending else start, mark)
    # sub rsp, 8 / the call / xor eax, eax / add rsp, 8 / ret
    pending_call = b"\x48\x83\xec\x08" + start + b"\x31\xc0\x48\x83\xc4\x08\xc3"
    parts = {
        0: first,
        _NEW_THREAD: new_thread,
        _PENDING_CALL: pending_call,
        _SAVED: _saved(saved, signal_mask),
        _XSTATE: extended_state,
        _text_at(extended_state): text + b"\0",
    }
    image = bytearray(stub_size(extended_state, text))
    limits = [*sorted(parts), len(image)]
    for at, limit in itertools.pairwise(limits):
        if at + len(parts[at]) > limit:
            raise AssertionError(f"stub part at {at:#x} is too long")
        image[at : at + len(parts[at])] = parts[at]
    return bytes(image)


def _text_at(extended_state: bytes) -> int:
    return (_XSTATE + len(extended_state) + 15) & ~15


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value & (1 << 64) - 1)


def _call(function: int, first: int, second: int) -> bytes:
    """mov rdi, first / mov rsi, second / mov rax, function / call rax"""
    return b"\x48\xbf" + _u64(first) + b"\x48\xbe" + _u64(second) + b"\x48\xb8" + _u64(function) + b"\xff\xd0"


def _new_thread(functions: Mapping[str, int], text: int) -> bytes:
    """if Py_IsInitialized(): s = PyGILState_Ensure(); PyRun_SimpleString(text); PyGILState_Release(s)"""
    run = b"\x48\xb8" + _u64(functions["PyGILState_Ensure"]) + b"\xff\xd0"
    run += b"\x89\xc3"  # mov ebx, eax
    run += b"\x48\xbf" + _u64(text) + b"\x48\xb8" + _u64(functions["PyRun_SimpleString"]) + b"\xff\xd0"
    run += b"\x89\xdf\x48\xb8" + _u64(functions["PyGILState_Release"]) + b"\xff\xd0"  # mov edi, ebx
    code = b"\x53\x48\x83\xec\x10"  # push rbx / sub rsp, 16
    code += b"\x48\xb8" + _u64(functions["Py_IsInitialized"]) + b"\xff\xd0\x85\xc0"  # test eax, eax
    code += b"\x74" + bytes([len(run)]) + run  # je past it
    return code + b"\x48\x83\xc4\x10\x5b\xc3"  # add rsp, 16 / pop rbx / ret


def _borrowed_thread(call: bytes, mark: int) -> bytes:
    code = call
    code += b"\x48\x89\x44\x24" + bytes([RESULT_AT])  # mov [rsp+8], rax
    code += b"\x48\xb8" + _u64(mark) + b"\x48\x89\x04\x24"  # mov [rsp], mark
    code += b"\x48\xc7\x44\x24\x10" + struct.pack("<i", _WAIT_SECONDS)  # mov qword [rsp+16], seconds
    code += b"\x48\xc7\x44\x24\x18" + struct.pack("<i", 0)  # mov qword [rsp+24], 0
    code += b"\x31\xff\x31\xf6\x48\x8d\x54\x24\x10\x45\x31\xd2\x45\x31\xc0"  # ppoll(0, 0, rsp+16, 0, 0)
    code += b"\xb8" + struct.pack("<i", _SYS_PPOLL) + b"\x0f\x05"
    return code + _restore_itself(len(code))


def _restore_itself(at: int) -> bytes:
    """Code at offset `at` that restores everything from the page. It writes to nothing but the stack."""
    code = b""

    def relative(opcode: bytes, target: int) -> bytes:
        return opcode + struct.pack("<i", target - (at + len(code) + len(opcode) + 4))

    code += b"\xb8" + struct.pack("<i", _SYS_RT_SIGPROCMASK) + b"\xbf" + struct.pack("<i", _SIG_SETMASK)
    code += relative(b"\x48\x8d\x35", _AT["mask"])  # lea rsi, [mask]
    code += b"\x31\xd2\x41\xba" + struct.pack("<i", 8) + b"\x0f\x05"  # rdx = 0, r10 = 8
    code += b"\x31\xc0\xff\xc8\x31\xd2\xff\xca"  # eax = edx = -1: every component
    code += relative(b"\x48\x0f\xae\x2d", _XSTATE)  # xrstor64
    code += relative(b"\xff\x35", _AT["eflags"])  # push
    for name, number in _NUMBERS.items():  # mov does not touch the flags
        rex, low = (0x4C if number >= 8 else 0x48), number & 7
        code += relative(bytes([rex, 0x8B, low << 3 | 5]), _AT[name])
    code += b"\x9d"  # popfq
    code += relative(b"\x48\x8b\x25", _AT["rsp"])
    return code + relative(b"\xff\x25", _AT["rip"])  # jmp


def _saved(registers: Registers, signal_mask: int) -> bytes:
    rip, rax = reissued(registers)
    values = [rax if name == "rax" else getattr(registers, name) for name in _NUMBERS]
    return b"".join(map(_u64, [*values, registers.rsp, rip, registers.eflags, signal_mask]))
