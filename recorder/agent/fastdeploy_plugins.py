"""FastDeploy's own way in: its plugin entry points arm the process and give back FastDeploy's own classes.

FastDeploy loads them only where FD_PLUGINS names `fdtrace` (its plugins/utils.py), one a group: the engine while
`common_engine` is imported, each worker while its `gpu_worker` or `xpu_worker` is. It swallows what goes wrong in the
engine's, so a failure is said on stderr and `fdtrace status` lists no agent there.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from . import load


def token_processor() -> Any:
    """Arm an engine process (group `fastdeploy.token_processor_plugins`)."""
    _arm()
    return importlib.import_module("fastdeploy.output.token_processor").TokenProcessor


def model_runner() -> Any:
    """Arm a worker process (group `fastdeploy.model_runner_plugins`)."""
    _arm()
    platform = importlib.import_module("fastdeploy.platforms").current_platform
    kind = "XPU" if platform.is_xpu() else "GPU"
    module = importlib.import_module("fastdeploy.worker.%s_model_runner" % kind.lower())
    return getattr(module, kind + "ModelRunner")


def _arm() -> None:
    try:
        load.load(load.read_sources(os.path.dirname(os.path.abspath(__file__)))).arm()
    except Exception as error:  # the server runs on, unarmed
        sys.stderr.write("fdtrace: this process is not armed: %r\n" % (error,))
