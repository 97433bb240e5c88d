"""Arms a process: wraps an engine's classes when they are imported, then waits for a command or a recording."""

from __future__ import annotations

import sys
from typing import Any

from .control import Agent, session_from_environment


class Finder:
    """A `sys.meta_path` finder. It lets the modules of known engines load as usual, and then wraps their classes."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.modules = {hook.module for adapter in agent.adapters for hook in adapter.hooks}
        self.busy = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The module's own spec, with a loader that tells us when it has run. None for every other module."""
        if self.busy or name not in self.modules:
            return None
        self.busy = True
        try:
            for finder in sys.meta_path:
                find = getattr(finder, "find_spec", None)
                spec = find(name, path, target) if find is not None and finder is not self else None
                if spec is not None:
                    break
            else:
                return None
        finally:
            self.busy = False
        if getattr(spec.loader, "exec_module", None) is not None:
            spec.loader = Loader(spec.loader, self.agent)
        return spec


class Loader:
    """Runs a module with its own loader, then installs the hooks."""

    def __init__(self, loader: Any, agent: Agent) -> None:
        self._fdtrace = (loader, agent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fdtrace[0], name)

    def create_module(self, spec: Any) -> Any:
        """As the module's own loader does."""
        return self._fdtrace[0].create_module(spec)

    def exec_module(self, module: Any) -> None:
        """As the module's own loader does. Then wrap what the module has defined."""
        loader, agent = self._fdtrace
        module.__loader__ = module.__spec__.loader = loader
        loader.exec_module(module)
        try:
            agent.install()
        except Exception as error:
            agent.switch_off(error)


current: Agent | None = None
"""This process's agent."""


def arm() -> Agent:
    """Arm this process. It may be called from the `.pth` file, from our `sitecustomize`, or from both."""
    global current  # noqa: PLW0603
    if current is None:
        current = Agent(keep_hooks=True)
        current.wanted = session_from_environment()
        sys.meta_path.insert(0, Finder(current))
        current.install()
    return current


def inject(session: dict[str, Any]) -> dict[str, Any]:
    """Hook a running process and begin to record. Returns `Agent.status`.

    An armed process has its hooks already. If it has no mailbox (it made no call yet, or lost it), it begins like this.
    """
    global current  # noqa: PLW0603
    agent = current
    if agent is None or agent.gone:
        agent = current = Agent(keep_hooks=False)
    elif agent.session is not None:
        return dict(agent.status(), already=True)
    agent.wanted = session  # set before the hooks: the engine's own thread may be the first to attend
    agent.install()
    if agent.installed:
        agent.attend(wait=True)
    agent.wanted = None  # if it has not begun now, it must not begin later: whoever attaches gives up
    status = agent.status()
    if status["problem"] and agent.session is not None:
        agent.stop("no way to end it later: " + status["problem"])
    if not agent.keep_hooks and (not agent.installed or status["problem"]):
        agent.leave()
    return status


def attend() -> dict[str, Any]:
    """Carry out a waiting command in a process whose engine is idle: there no hooked call does it."""
    agent = current
    if agent is None or agent.gone:
        return {}
    agent.attend()
    return agent.status()
