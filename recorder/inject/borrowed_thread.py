"""Borrows one thread of a process for a fraction of a millisecond, starts our own thread from it, and restores it."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from dataclasses import dataclass
from types import TracebackType

from fdtrace.recorder.inject import inject_errors, ptrace, stub, thread_choice
from fdtrace.recorder.inject.memory import ProcessMemory
from fdtrace.recorder.inject.ptrace import Registers, Tracee
from fdtrace.recorder.inject.signal_frame import lay_frame
from fdtrace.recorder.inject.target import Target

_PATIENCE_S = 1.0
_SYS_MMAP, _PROT_READ_EXEC, _MAP_PRIVATE_ANONYMOUS = 9, 5, 0x22
_PAGE_SIZE = 4096
_NO_CALL = (1 << 64) - 1
_TRAP_AND_DIRECTION_FLAGS = 0x500
_FAULTS = (signal.SIGTRAP, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS)
_LIBRARY_SIGNALS = (32, 33, 34)
"""Signals of the C library itself. The new thread inherits the mask. With SIGSETXID (33) blocked in it, a setuid in the
program would wait for that thread for ever."""
_NEVER_BLOCKED = (signal.SIGKILL, signal.SIGSTOP)
"""The kernel removes these from every mask. With them, our mask would never equal the one that we read back."""
_BLOCKED = ((1 << 64) - 1) & ~sum(
    1 << (number - 1) for number in (*_FAULTS, *_LIBRARY_SIGNALS, *_NEVER_BLOCKED)
)


@dataclass(frozen=True)
class SavedThread:
    """The state of a thread before we changed it."""

    registers: Registers
    extended_state: bytes
    signal_mask: int


class BorrowedThread:
    """A thread of the target. It stands still while this context is open.

    Any method may raise ProcessLookupError: the thread has ended.
    """

    def __init__(self, target: Target, tid: int) -> None:
        self.target, self.tid = target, tid
        self.held_s = 0.0
        self._saved: SavedThread | None = None
        self._page = range(0)
        self._mark = secrets.randbits(64)
        self._marked = False
        self._let_go = False

    def __enter__(self) -> BorrowedThread:
        self._memory = ProcessMemory(self.target.pid, writable=True)
        try:
            self._tracee = Tracee(self.tid)
        except BaseException:
            self._memory.close()
            raise
        self._since = time.perf_counter()
        try:
            self._stop()
            self.registers = self._tracee.registers()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._release()

    def start(self, text: bytes, *, pending: bool) -> None:
        """Make the borrowed thread start a new thread that runs `text`.

        `pending`: queue `text` for the main thread's next safe point instead.
        """
        state = self._tracee.extended_state()
        mask = self._tracee.signal_mask()
        self._saved = SavedThread(self.registers, state, mask)
        page = self._map(self._saved, stub.stub_size(state, text))
        code = stub.build_stub(
            page.start,
            self.target.python.functions,
            self.registers,
            state,
            mask,
            text=text,
            pending=pending,
            mark=self._mark,
        )
        self._memory.write(page.start, code)
        registers = self._aside(page.start)
        registers.rsp = stack = stub.stack_pointer(self.registers)
        registers.eflags &= ~_TRAP_AND_DIRECTION_FLAGS
        self._tracee.set_registers(registers)
        self._page = page
        self._tracee.resume()
        self._wait_for_mark(stack, pending=pending)
        self._check_result(self._memory.read_u64(stack + stub.RESULT_AT), pending=pending)

    def _aside(self, address: int) -> Registers:
        """The saved registers, changed to run at `address`, with no system call that the kernel would restart."""
        registers = self.registers.copy()
        registers.rip, registers.orig_rax = address, _NO_CALL
        return registers

    def _stop(self) -> None:
        self._tracee.interrupt()
        while (stop := self._tracee.wait_stop(_PATIENCE_S)) is not None:
            number, event = stop
            if event == ptrace.EVENT_STOP or (self._saved is not None and number in _FAULTS):
                return
            self._tracee.resume(deliver=number)  # a signal for the program, which was just being delivered
        if self._saved is not None:
            raise self._starved()
        place = thread_choice.describe(self.target.pid, self.tid)
        raise inject_errors.Stuck(self.target.pid, f"thread {self.tid} in {place}")

    def _starved(self) -> inject_errors.InjectError:
        """The error for a thread that runs, or waits to run, where we cannot restore it.

        The stub will restore the thread. We no longer hold it.
        """
        return inject_errors.NoTrap(
            self.target.pid, f"it got no processor within {_PATIENCE_S:g} s; it restores itself"
        )

    def _map(self, saved: SavedThread, size: int) -> range:
        """Make the thread map `size` bytes, readable and executable."""
        call = self._aside(self.target.syscall_at)
        call.rax, call.rdi, call.rsi, call.rdx = _SYS_MMAP, 0, size, _PROT_READ_EXEC
        call.r10, call.r8, call.r9 = _MAP_PRIVATE_ANONYMOUS, _NO_CALL, 0
        if self.target.sigreturn_at:
            call.rsp = lay_frame(
                self._memory,
                self.target.sigreturn_at,
                saved.registers,
                saved.extended_state,
                saved.signal_mask,
            )
        # The order matters, here and below: at any moment at which we may be killed, the thread can return by itself.
        self._tracee.set_registers(call)
        self._tracee.set_signal_mask(saved.signal_mask | _BLOCKED)
        self._step_to_call()
        self._step_to_call()
        address = self._tracee.registers().rax
        if address % _PAGE_SIZE and address < (1 << 64) - _PAGE_SIZE:
            self._step_to_call()  # a filter put off the call; its SIGSYS comes now
        if address >= (1 << 64) - _PAGE_SIZE:
            reason = os.strerror((1 << 64) - address)
            raise inject_errors.Seccomp(self.target.pid, f"it may not map an executable page ({reason})")
        return range(address, address + size)

    def _step_to_call(self) -> None:
        """Resume the thread until it next enters or leaves a system call."""
        deliver = 0
        while True:
            self._tracee.resume(ptrace.PTRACE_SYSCALL, deliver)
            stop = self._tracee.wait_stop(_PATIENCE_S)
            if stop is None:
                raise self._starved()
            number, event = stop
            if number == ptrace.SYSCALL_STOP:
                return
            if number == signal.SIGSYS:
                raise inject_errors.Seccomp(
                    self.target.pid, "its own filter forbids to map an executable page"
                )
            deliver = self._to_deliver(number, event)

    def _to_deliver(self, number: int, event: int) -> int:
        """The signal to resume with after a stop that we did not cause. Raises an error if our own call failed."""
        if event == ptrace.EVENT_STOP:
            # The process is being stopped (SIGSTOP): this thread stops too, after we have restored it.
            return 0
        if number not in _FAULTS:
            return number
        at = self._tracee.registers().rip
        if number == signal.SIGTRAP:
            raise inject_errors.ForeignBreakpoint(self.target.pid, at - 1)
        raise inject_errors.NoTrap(
            self.target.pid, f"{signal.Signals(number).name} at {at:#x}; the thread was restored"
        )

    def _wait_for_mark(self, stack: int, *, pending: bool) -> None:
        patience = ptrace.WaitLimit(_PATIENCE_S)
        while not patience.is_over():
            stop = self._tracee.poll_stop()
            if stop is not None:
                self._tracee.resume(deliver=self._to_deliver(*stop))
            with contextlib.suppress(OSError):  # the stack may not have grown that far yet
                if self._memory.read_u64(stack + stub.MARK_AT) == self._mark:
                    self._marked = True
                    self._stop()
                    return
            ptrace.doze()
        why = f"after {_PATIENCE_S:g} s it is still in {thread_choice.describe(self.target.pid, self.tid)}"
        if pending or thread_choice.waits_for_mutex(self.target.pid, self.tid):
            self._stop()  # the thread may itself hold the mutex, and then the call would never return
            raise inject_errors.NoTrap(self.target.pid, f"{why}; the thread was restored")
        # If we tore the thread out of the call, it might leave locks locked. It restores itself when the call returns.
        self._let_go = True
        raise inject_errors.NoTrap(self.target.pid, f"{why}; it restores itself when that is over")

    def _check_result(self, result: int, *, pending: bool) -> None:
        if pending and result & 0xFFFFFFFF:
            raise inject_errors.NoSafePoint(self.target.pid, "its queue of pending calls is full")
        if not pending and result == _NO_CALL:
            raise inject_errors.AgentFailed(
                self.target.pid,
                "it could not start a thread: a limit on threads or memory (ulimit -u, pids.max)",
            )

    def _release(self) -> None:
        try:
            if self._let_go:
                return  # the kernel detaches a running thread when the thread that traces it, ours, ends
            registers = self._tracee.registers()
            if self._saved is None or self._has_restored_itself(registers):
                self._tracee.set_registers(thread_choice.undisturbed(registers))
            else:
                self._tracee.set_signal_mask(self._saved.signal_mask)
                self._tracee.set_extended_state(self._saved.extended_state)
                self._tracee.set_registers(thread_choice.undisturbed(self._saved.registers))
            self._tracee.detach()
        except ProcessLookupError:
            pass  # the thread has ended
        finally:
            self.held_s = time.perf_counter() - self._since
            self._memory.close()

    def _has_restored_itself(self, registers: Registers) -> bool:
        """Whether we came too late: the stub's own wait was over, and the stub has restored the thread."""
        if not self._page or self._saved is None or registers.rip in self._page:
            return False
        return self._marked or self._tracee.signal_mask() != self._saved.signal_mask | _BLOCKED
