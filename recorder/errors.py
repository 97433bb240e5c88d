"""Every error that fdtrace reports to a user has one of these classes; `fdtrace.cli` alone prints them."""

from __future__ import annotations

from fdtrace.recorder.printable import printable_lines


class FdtraceError(Exception):
    """What happened, why, and what to do next.

    `exit_code` is that of the command: 1 a check failed, 2 wrong use, 3 the target or the trace cannot be used. The
    texts may quote a trace, an engine or another process: here, and only here, they are made safe to print.
    """

    exit_code = 3

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        self.what = printable_lines(what, "  ")
        self.why = printable_lines(why, "       ")
        self.hint = printable_lines(hint, "        ")
        super().__init__(self.what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.why:
            parts.append(f"why: {self.why}")
        if self.hint:
            parts.append(f"next: {self.hint}")
        return "\n  ".join(parts)


class UsageError(FdtraceError):
    """The command line, a formula or an option makes no sense."""

    exit_code = 2


class TraceError(FdtraceError):
    """A file is no trace, or this version cannot read it."""


class TargetError(FdtraceError):
    """The process to be recorded cannot be reached or understood."""


class StuckQueryError(UsageError):
    """A query went past its limit and does not react to the interruption: a thread of this process still runs it.

    Only the end of the process ends that thread. The command ends at once, without waiting for it.
    """
