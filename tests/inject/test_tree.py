"""Which processes belong to a server."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fdtrace.recorder.inject import is_python, is_same_process, process_tree
from fdtrace.recorder.inject.inject_errors import NoProcess

CHILD = "import sys; sys.stdin.read()"
PARENT = f"""
import os, subprocess, sys
kept = [subprocess.Popen([sys.executable, "-c", {CHILD!r}], start_new_session=True),
        subprocess.Popen(["cat"]),
        subprocess.Popen(["sh", "-c", "cat; true"])]
gone = subprocess.Popen(["true"])
os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
def grandchildren():
    found = open(f"/proc/{{kept[2].pid}}/task/{{kept[2].pid}}/children").read().split()
    return [open(f"/proc/{{pid}}/comm").read() for pid in found]
while grandchildren() != ["cat\\n"]:
    pass
print(*(process.pid for process in [*kept, gone]), flush=True)
sys.stdin.read()
"""


def test_a_tree_is_found_by_parents_across_sessions() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    python, cat, shell, zombie = map(int, process.stdout.readline().split())
    tree = process_tree(process.pid)
    by_pid = {one.pid: one for one in tree}
    assert tree[0].pid == process.pid
    assert tree[0].depth == 0
    assert [by_pid[pid].depth for pid in (python, cat, shell)] == [1, 1, 1]
    assert [is_python(pid) for pid in (process.pid, python, cat, shell)] == [True, True, False, False]
    (grandchild,) = (one for one in tree if one.depth == 2)
    assert (grandchild.parent, grandchild.name) == (shell, "cat")
    assert zombie not in by_pid
    assert len(tree) == 5
    assert all(one.is_alive() for one in tree)

    process.communicate("")
    assert not by_pid[process.pid].is_alive()
    with pytest.raises(NoProcess):
        process_tree(process.pid)


def test_a_reused_pid_is_another_process() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    start_time = process_tree(process.pid)[0].start_time
    assert is_same_process(process.pid, start_time)
    assert not is_same_process(process.pid, start_time - 1)
    process.communicate(b"")
    assert not is_same_process(process.pid, start_time)
