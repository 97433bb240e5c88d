"""Runs cases of the lab, each in a fork of one process that has imported FastDeploy: the imports take longest.

    LAB_DIR=DIR FASTDEPLOY_SRC=DIR python lab_cases.py

It runs under a Python that has what FastDeploy imports. Each line on stdin is a JSON list of a case's path and the path
of the lab's own lines; each line on stdout says how the fork ended: 0 if it wrote them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

OPERATORS = "fastdeploy.model_executor.ops.gpu"


def import_fastdeploy() -> Any:
    """The lab's module, after all that a case imports."""
    sys.path.insert(0, os.environ["LAB_DIR"])
    lab = importlib.import_module("fastdeploy_lab")
    sys.modules.setdefault(OPERATORS, lab.NoGpuOps(OPERATORS))
    for name in ("engine.sched.resource_manager_v1", "engine.args_utils", "worker.gpu_model_runner"):
        importlib.import_module(f"fastdeploy.{name}")
    return lab


def main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what FastDeploy prints
    lab = import_fastdeploy()
    for line in sys.stdin:
        case, lines = json.loads(line)
        child = os.fork()
        if child == 0:
            with open(case) as file:
                lab.batch(json.load(file), lines)
            return
        _, status = os.waitpid(child, 0)
        out.write(f"{os.waitstatus_to_exitcode(status)}\n")


if __name__ == "__main__":
    main()
