"""What is sent into an entered process: code that looks at its modules, the agent for its engine, the order to begin.

If an earlier recording left the same agent there, with its hooks off, that agent is used again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import marshal
from pathlib import Path
from typing import Any

from fdtrace.recorder.agent import adapters, load
from fdtrace.recorder.inject import Conversation
from fdtrace.recorder.session import Session

AGENT = Path(load.__file__).parent


def deliver(conversation: Conversation, session: Session) -> dict[str, Any]:
    """Hook the process and make it record to `session`.

    Returns `Agent.status`, and with it the process's `modules` of serving engines. If the process has no engine that we
    know, nothing is loaded, and `hooks` is empty.
    """
    survey = conversation.ask(f"{_loader()}\nresult = find_engines({_hooked_modules()!r})\n")
    if not survey["engines"]:
        return {"hooks": [], "problem": "", "modules": survey["modules"]}
    engines = tuple(survey["engines"])
    wanted, data = identity(engines), b""
    if survey["in_use"]:
        wanted = survey["agent"]
    elif survey["agent"] != wanted:
        data = marshal.dumps(_compiled(engines) if conversation.is_our_python else _sources(engines), 2)
    agent = f"load(marshal.loads(data) if data else {{}}, {wanted!r})"
    status: dict[str, Any] = conversation.ask(f"result = {agent}.inject({session.for_agent()!r})\n", data)
    return dict(status, modules=survey["modules"])


@functools.cache
def identity(engines: tuple[str, ...]) -> str:
    """Distinguishes an agent for these engines from the agents of other versions of fdtrace."""
    return hashlib.sha256(marshal.dumps(sorted(_sources(engines).items()), 2)).hexdigest()[:16]


@functools.cache
def _loader() -> str:
    return (AGENT / "load.py").read_text(encoding="utf-8")


@functools.cache
def _sources(engines: tuple[str, ...]) -> dict[str, str]:
    return load.read_sources(str(AGENT), engines)


@functools.cache
def _compiled(engines: tuple[str, ...]) -> dict[str, bytes]:
    """Code objects of our own Python's version, marshalled."""
    return {name: _code(name, text) for name, text in _sources(engines).items()}


@functools.cache
def _code(name: str, text: str) -> bytes:
    """The code object of one module, marshalled. Most modules are the same for every engine."""
    return marshal.dumps(compile(text, load.file_name(name), "exec"))


@functools.cache
def _hooked_modules() -> dict[str, list[str]]:
    """For each engine, the modules in which it is hooked."""
    for names in load.ENGINES.values():
        for name in names:
            importlib.import_module(f"fdtrace.recorder.agent.{name}")
    modules_of: dict[str, set[str]] = {engine: set() for engine in load.ENGINES}
    for adapter in adapters.loaded():
        engine = next(
            e for e, names in load.ENGINES.items() if adapter.__module__.rpartition(".")[2] in names
        )
        modules_of[engine] |= {hook.module for hook in adapter(None).hooks}
    return {engine: sorted(modules) for engine, modules in modules_of.items()}


def prepare() -> None:
    """Do in advance what takes time and needs no process: compile the agent."""
    _hooked_modules()
    _loader()
    for engine in load.ENGINES:
        identity((engine,))
        _compiled((engine,))
