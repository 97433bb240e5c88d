"""Loads the agent under its private name, from the files beside this one or from what is sent to a process.

This file is executed alone (`exec`), before there is a package. So it imports nothing of ours.
"""

from __future__ import annotations

import marshal
import os
import sys
import types
from typing import Any

NAME = "_fdtrace_agent"

FIRST = ("wire_names", "wire", "ring", "mailbox", "hooks", "writer")
ENGINES = {
    "sandbox": ("sandbox",),
    "fastdeploy": (
        *(
            "fastdeploy_reasons",
            "fastdeploy_config",
            "wire_order",
            "order",
            "fastdeploy_lock",
            "fastdeploy_cache",
            "checkpoint_times",
            "fastdeploy_found",
            "fastdeploy_roles",
            "fastdeploy_order",
        ),
        *("fastdeploy", "fastdeploy_worker"),
    ),
    "vllm": (
        *("row_table", "torch_allocator", "at_work"),
        *("vllm_config", "vllm_reasons", "vllm_resting", "vllm_figures", "vllm_batch", "vllm", "vllm_worker"),
    ),
    "transformers": (
        *("row_table", "torch_allocator", "at_work", "checkpoint_times"),
        *("transformers_config", "transformers_found", "transformers_figures", "transformers_batch"),
        "transformers",
    ),
}
"""The modules of each engine's adapters. An injected process gets only those of its own engine."""

LAST = ("adapters", "control", "arm")

LIBRARIES = ("transformers",)
"""Engines whose modules other serving engines import too: only where none of those is loaded is one at work."""

ARMED = "armed"
"""Identity of an agent that was loaded from files. It has the modules of all engines: its process may import any."""


def order(engines: Any = tuple(ENGINES)) -> tuple[str, ...]:
    """The agent's modules for these engines. Each comes after the modules that it imports."""
    return (*FIRST, *dict.fromkeys(name for engine in engines for name in ENGINES[engine]), *LAST)


def read_sources(directory: str, engines: Any = tuple(ENGINES)) -> dict[str, str]:
    """The sources of these modules, by name."""
    sources = {}
    for name in order(engines):
        with open(os.path.join(directory, name + ".py"), encoding="utf-8") as file:
            sources[name] = file.read()
    return sources


def file_name(name: str) -> str:
    """The name of an agent's module in a traceback."""
    return "<fdtrace agent: %s>" % name


def find_engines(hooked_modules: dict[str, list[str]]) -> dict[str, Any]:
    """Which engines and which agent this process has.

    `hooked_modules`: for each engine, the modules in which it is hooked. In the result, `in_use` says that the agent is
    armed or records. `modules` are modules of serving engines, for the message that no scheduler was found in them.
    """
    families = ("fastdeploy", "vllm", "sglang")
    package: Any = sys.modules.get(NAME)
    current = package.arm.current if package is not None else None
    loaded = [name for name, modules in hooked_modules.items() if not sys.modules.keys().isdisjoint(modules)]
    if not sys.modules.keys().isdisjoint(families):
        loaded = [name for name in loaded if name not in LIBRARIES]
    return {
        "engines": loaded,
        "modules": sorted(name for name in sys.modules if name.split(".")[0] in families)[:40],
        "agent": getattr(package, "identity", None),
        "in_use": current is not None and not current.gone,
    }


def load(codes: dict[str, Any], identity: str = ARMED) -> types.ModuleType:
    """Make the package and return its module `arm`. If one of the same identity is loaded already, it is used again.

    `codes`, in the order of loading: each module's source, or its code object, marshalled by a Python of the same
    version. To compile the sources takes tens of milliseconds, in which the process's own threads wait.
    """
    current = sys.modules.get(NAME)
    if current is not None and current.identity == identity:
        return current.arm  # type: ignore[no-any-return]
    unload()
    package: Any = types.ModuleType(NAME)
    package.__path__, package.identity = [], identity
    sys.modules[NAME] = package
    try:
        for name, code in codes.items():
            full = NAME + "." + name
            module = types.ModuleType(full)
            module.__package__ = NAME
            sys.modules[full] = module
            setattr(package, name, module)
            compiled = isinstance(code, bytes)
            exec(marshal.loads(code) if compiled else compile(code, file_name(name), "exec"), module.__dict__)
    except BaseException:
        unload()
        raise
    return package.arm  # type: ignore[no-any-return]


def unload() -> None:
    """Forget the package."""
    for name in list(sys.modules):
        if name == NAME or name.startswith(NAME + "."):
            del sys.modules[name]
