"""Loads the agent under its private name, from the files beside this one or from sources sent to a process.

This file is run by itself (`exec`), before there is a package: it imports nothing of ours.
"""

from __future__ import annotations

import base64
import marshal
import os
import sys
import types
import zlib
from typing import Any

NAME = "_fdtrace_agent"

ORDER = (
    "wire",
    "ring",
    "mailbox",
    "hooks",
    "writer",
    "sandbox",
    "fastdeploy_config",
    "fastdeploy_roles",
    "fastdeploy",
    "fastdeploy_worker",
    "vllm_config",
    "vllm_figures",
    "vllm_batch",
    "vllm",
    "vllm_worker",
    "adapters",
    "control",
    "arm",
)
"""The agent's modules, each after those that it imports."""


def read_sources(directory: str) -> dict[str, str]:
    """The sources of the agent's modules, by name."""
    sources = {}
    for name in ORDER:
        with open(os.path.join(directory, name + ".py"), encoding="utf-8") as file:
            sources[name] = file.read()
    return sources


def file_name(name: str) -> str:
    """What a traceback calls a module of the agent."""
    return "<fdtrace agent: %s>" % name


def engine_modules() -> list[str]:
    """Modules of serving engines that are loaded, for a message that no scheduler is among them."""
    engines = ("fastdeploy", "vllm", "sglang")
    return sorted(name for name in sys.modules if name.split(".")[0] in engines)[:40]


def unpacked(text: str) -> dict[str, Any]:
    """A dictionary of texts or bytes that was marshalled, compressed and written in base 64."""
    found: dict[str, Any] = marshal.loads(zlib.decompress(base64.b64decode(text)))
    return found


def magic() -> str:
    """What tells apart the code objects of Python's versions."""
    found: bytes = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
    return found.hex()


def load(sources: dict[str, str], compiled: dict[str, bytes] | None = None) -> types.ModuleType:
    """Make the package from its sources and return its module `arm`; one that is loaded already is used again.

    `compiled` has the modules' code objects, marshalled by a Python of the same `magic()`: to compile them takes tens
    of milliseconds in which the process's own threads wait.
    """
    known = sys.modules.get(NAME)
    if known is not None:
        return known.arm  # type: ignore[no-any-return]
    package = types.ModuleType(NAME)
    package.__path__ = []
    sys.modules[NAME] = package
    try:
        for name in ORDER:
            full = NAME + "." + name
            module = types.ModuleType(full)
            module.__package__ = NAME
            sys.modules[full] = module
            setattr(package, name, module)
            if compiled is not None:
                code = marshal.loads(compiled[name])
            else:
                code = compile(sources[name], file_name(name), "exec")
            exec(code, module.__dict__)
    except BaseException:
        unload()
        raise
    return package.arm  # type: ignore[no-any-return]


def unload() -> None:
    """Forget the package."""
    for name in list(sys.modules):
        if name == NAME or name.startswith(NAME + "."):
            del sys.modules[name]
