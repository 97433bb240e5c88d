"""Runs code in a running Python process: `enter`, `run_in_process`. Its errors are in `inject_errors`."""

from fdtrace.recorder.inject.conversation import Conversation
from fdtrace.recorder.inject.injector import InjectionResult, enter, run_in_process
from fdtrace.recorder.inject.no_interruptions import first_in_line, rest
from fdtrace.recorder.inject.target import Target, check_process, check_target, is_python
from fdtrace.recorder.inject.tree import Process, is_same_process, process_tree

__all__ = [
    "Conversation",
    "InjectionResult",
    "Process",
    "Target",
    "check_process",
    "check_target",
    "enter",
    "first_in_line",
    "is_python",
    "is_same_process",
    "process_tree",
    "rest",
    "run_in_process",
]
