"""What is sent into a process that was entered: a look at what it has, the agent for that, the order to begin.

An agent that an earlier recording left there, hooks off, is used again where it is the same.
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


def deliver(there: Conversation, session: Session) -> dict[str, Any]:
    """Hook the process and have it record to `session`; what it answers is `Agent.status`, with the `modules` of
    serving engines that it has. Where it has no engine that we know, nothing is loaded and `hooks` is empty.
    """
    seen = there.ask(f"{_loader()}\nresult = look({_known()!r})\n")
    if not seen["engines"]:
        return {"hooks": [], "problem": "", "modules": seen["modules"]}
    engines = tuple(seen["engines"])
    wanted, data = identity(engines), b""
    if seen["in_use"]:
        wanted = seen["agent"]
    elif seen["agent"] != wanted:
        data = marshal.dumps(_compiled(engines) if there.is_our_python else _sources(engines), 2)
    agent = f"load(marshal.loads(data) if data else {{}}, {wanted!r})"
    status: dict[str, Any] = there.ask(f"result = {agent}.inject({session.for_agent()!r})\n", data)
    return dict(status, modules=seen["modules"])


@functools.cache
def identity(engines: tuple[str, ...]) -> str:
    """What tells an agent for these engines from those of other versions of fdtrace."""
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
    """One module's: most are every engine's."""
    return marshal.dumps(compile(text, load.file_name(name), "exec"))


@functools.cache
def _known() -> dict[str, list[str]]:
    """The modules that each engine is hooked in."""
    for names in load.ENGINES.values():
        for name in names:
            importlib.import_module(f"fdtrace.recorder.agent.{name}")
    found: dict[str, set[str]] = {engine: set() for engine in load.ENGINES}
    for adapter in adapters.loaded():
        engine = next(
            e for e, names in load.ENGINES.items() if adapter.__module__.rpartition(".")[2] in names
        )
        found[engine] |= {hook.module for hook in adapter(None).hooks}
    return {engine: sorted(modules) for engine, modules in found.items()}


def prepare() -> None:
    """Do beforehand what takes time and concerns no process: compiling the agent."""
    _known()
    _loader()
    for engine in load.ENGINES:
        identity((engine,))
        _compiled((engine,))
