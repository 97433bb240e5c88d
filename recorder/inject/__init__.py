"""Get code into a running Python process: `run_in_process`. What can stand in the way: `errors`."""

from recorder.inject.injector import InjectionResult, run_in_process
from recorder.inject.target import Target, check_target
from recorder.inject.tree import Process, is_same_process, process_tree

__all__ = [
    "InjectionResult",
    "Process",
    "Target",
    "check_target",
    "is_same_process",
    "process_tree",
    "run_in_process",
]
