"""One class for each cause for which no code can be brought into a process; `code` is stable."""

from __future__ import annotations

from typing import ClassVar

from fdtrace.recorder.errors import TargetError

ARM = "start it armed: FDTRACE=1 in its environment, or `fdtrace record -- CMD`; that needs no privileges"


class InjectError(TargetError):
    """No code was brought in. `pid` is the target's; what the process was doing is as it was before."""

    code: ClassVar[str] = ""

    def __init__(self, pid: int, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what, why=why, hint=hint)
        self.pid = pid


class NotX8664(InjectError):
    code = "not_x86_64"

    def __init__(self, pid: int, machine: str) -> None:
        why = f"code can be brought only into x86_64 programs on Linux; this is {machine}"
        super().__init__(pid, f"cannot attach to process {pid} on this machine", why=why, hint=ARM)


class NoProcess(InjectError):
    code = "no_process"

    def __init__(self, pid: int) -> None:
        super().__init__(pid, f"there is no process {pid}", hint="`pgrep -af python` lists Python processes")


class NotAProcess(InjectError):
    code = "not_a_process"

    def __init__(self, pid: int, process: int) -> None:
        why = f"it is the id of a thread of process {process}"
        super().__init__(pid, f"{pid} is not a process", why=why, hint=f"give {process} instead")


class Zombie(InjectError):
    code = "zombie"

    def __init__(self, pid: int, parent: int) -> None:
        why = f"it is a zombie: its parent {parent} has not collected its exit status"
        super().__init__(
            pid, f"process {pid} has already ended", why=why, hint="attach to a process that runs"
        )


class NotCPython(InjectError):
    code = "not_cpython"

    def __init__(self, pid: int, exe: str) -> None:
        why = f"nothing that it has loaded holds CPython's C API ({exe})"
        hint = f"give the pid of a Python process: `pstree -p {pid}` shows its children"
        super().__init__(pid, f"process {pid} is not CPython", why=why, hint=hint)


class OtherUser(InjectError):
    code = "other_user"

    def __init__(self, pid: int, owner: int, me: int) -> None:
        why = f"it runs as user {owner}, and this is user {me} without CAP_SYS_PTRACE"
        hint = f"run the same command with `sudo`, or as that user: `sudo -u '#{owner}' fdtrace attach {pid}`"
        super().__init__(pid, f"process {pid} belongs to another user", why=why, hint=hint)


class NoPtrace(InjectError):
    code = "no_ptrace"

    def __init__(self, pid: int, why: str) -> None:
        hint = (
            "in Docker `docker run --cap-add SYS_PTRACE …`; in Kubernetes securityContext.capabilities.add: "
            f"[SYS_PTRACE]; outside a container `sudo`; or {ARM}"
        )
        super().__init__(pid, f"the kernel does not let us attach to process {pid}", why=why, hint=hint)


class Yama(InjectError):
    code = "yama"

    def __init__(self, pid: int, scope: int) -> None:
        meaning = {1: "only a process's own ancestors may attach", 2: "only CAP_SYS_PTRACE may attach"}
        why = f"kernel.yama.ptrace_scope is {scope}: {meaning.get(scope, 'nobody may attach')}"
        hint = f"`sudo sysctl kernel.yama.ptrace_scope=0`, or run this command with `sudo`; or {ARM}"
        if scope >= 3:
            hint = f"3 can only be lowered by a reboot; {ARM}"
        super().__init__(pid, f"the kernel does not let us attach to process {pid}", why=why, hint=hint)


class Seccomp(InjectError):
    code = "seccomp"

    def __init__(self, pid: int, why: str, *, hint: str = "") -> None:
        outside = "run fdtrace outside the container, or with `--security-opt seccomp=unconfined`"
        hint = f"{hint or outside}; or {ARM}"
        super().__init__(pid, f"a seccomp filter stands between us and process {pid}", why=why, hint=hint)

    @classmethod
    def may_kill(cls, pid: int, theirs: int, own: int) -> Seccomp:
        """It is under `theirs` filters, this command under `own`: nothing can be asked what they do."""
        calls = (
            "socket, connect, clone, ppoll, openat, mkdir, unlink, and mmap of executable pages and of a file"
        )
        looks = "1 filter looks" if theirs == 1 else f"{theirs} filters look"
        why = f"{looks} at its system calls ({own} at ours), and may kill it for one that we make in it: {calls}"
        return cls(pid, why, hint="`fdtrace attach --force` where its filter is known to allow these")


class Traced(InjectError):
    code = "traced"

    def __init__(self, pid: int, tracer: int, tracer_name: str) -> None:
        why = f"process {tracer} ({tracer_name}) traces it, and a process has one tracer at a time"
        super().__init__(
            pid, f"process {pid} is being debugged", why=why, hint=f"end {tracer_name} ({tracer})"
        )


class Stopped(InjectError):
    code = "stopped"

    def __init__(self, pid: int) -> None:
        super().__init__(pid, f"process {pid} is stopped", hint=f"`kill -CONT {pid}`, then attach again")


class Stuck(InjectError):
    code = "stuck"

    def __init__(self, pid: int, where: str) -> None:
        why = f"its threads wait in the kernel where they cannot be interrupted ({where})"
        hint = (
            f"see `cat /proc/{pid}/task/*/wchan`: usually a disk, a network file system, a frozen container "
            "(`docker unpause`) or a child between vfork and exec; attach when that is over"
        )
        super().__init__(pid, f"process {pid} is stuck in the kernel", why=why, hint=hint)


class NoTrap(InjectError):
    code = "no_trap"

    def __init__(self, pid: int, why: str) -> None:
        what = f"process {pid} did not come back from the call that starts our thread"
        super().__init__(pid, what, why=why, hint="nothing was installed; attach again")


class GilHeld(InjectError):
    code = "gil_held"

    def __init__(self, pid: int, seconds: float) -> None:
        what = f"no Python code of process {pid} ran within {seconds:g} s"
        why = "a C call holds the GIL (or the interpreter starts up or ends); nothing was installed"
        hint = f"`py-spy dump --native --pid {pid}` shows the call; attach again when it is over"
        super().__init__(pid, what, why=why, hint=hint)


class TargetEnded(InjectError):
    code = "ended"

    def __init__(self, pid: int) -> None:
        super().__init__(pid, f"process {pid} ended while we attached to it", hint="see its own log for why")


class ForeignBreakpoint(InjectError):
    code = "foreign_breakpoint"

    def __init__(self, pid: int, address: int) -> None:
        why = f"a breakpoint instruction of another debugger stands at {address:#x}; the thread was restored"
        hint = "a debugger that was killed leaves its breakpoints behind: restart the process"
        super().__init__(pid, f"process {pid} ran into a breakpoint that is not ours", why=why, hint=hint)


class NoSafePoint(InjectError):
    code = "no_safe_point"

    def __init__(self, pid: int, why: str) -> None:
        super().__init__(pid, f"no safe point in process {pid}", why=why, hint=f"attach again; or {ARM}")


class AgentFailed(InjectError):
    code = "agent_failed"

    def __init__(self, pid: int, why: str) -> None:
        hint = "the process itself goes on; `fdtrace status` shows what is installed in it"
        super().__init__(pid, f"what we brought into process {pid} failed there", why=why, hint=hint)
