"""FastDeploy's plugin entry points: they arm the process and return FastDeploy's own classes.

FastDeploy loads them only if FD_PLUGINS names `fdtrace` (its plugins/utils.py), one for each group: the engine while
it imports `common_engine`, each worker while it imports its `gpu_worker` or `xpu_worker`. FastDeploy swallows errors of
the engine's plugin. So a failure is printed on stderr, and `fdtrace status` lists no agent there.
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
