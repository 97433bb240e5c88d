"""Wraps methods of an engine's classes, and restores the originals."""

from __future__ import annotations

import functools
import sys
from time import monotonic
from typing import Any, Callable, NamedTuple, Optional, Protocol

MARK = "_fdtrace_hook"
"""Attribute of our wrappers. With it a wrapper can be recognised."""


class Recorder(Protocol):
    """The part of the agent that wrappers need."""

    on: bool
    """Whether it records now."""
    lock: Any
    """Held while a hook runs (a `_thread.lock`)."""
    mark: Any
    """`mark[0]` is false in a child of the process that made the agent."""
    next_look: float
    """When `needs_attention` is to be asked again, on the clock `time.monotonic`."""

    def needs_attention(self) -> bool:
        """Whether `attend` has something to do. It never raises."""

    def attend(self) -> None:
        """Carry out what waits."""

    def switch_off(self, error: BaseException) -> None:
        """A hook failed: stop recording."""


class Hook(NamedTuple):
    """A method to be wrapped.

    `before(self, args, kwargs)` returns a token for `after(self, args, kwargs, token, result)`. If the engine's own
    method raised, `failed(self, error, token)` is called instead of `after`. `token` is None without a `before`, and if
    the recording began during the call. `cls` "": every class of the module that defines the method. `unless`: not if
    the class also has that method. `only`: only if it has that method.
    """

    module: str
    cls: str
    method: str
    before: Optional[Callable[..., Any]] = None
    after: Optional[Callable[..., None]] = None
    failed: Optional[Callable[..., None]] = None
    unless: str = ""
    only: str = ""


class Installed(NamedTuple):
    """An installed hook: the class that has it, its wrapper, and the original method."""

    hook: Hook
    owner: type
    wrapper: Any
    original: Any


def install(agent: Recorder, hook: Hook) -> list[Installed]:
    """Wrap the method if its module is loaded. Returns an empty list if module, class or method do not exist."""
    module = sys.modules.get(hook.module)
    if hook.cls:
        owners = [getattr(module, hook.cls, None)]
    else:
        classes = (
            [value for value in list(vars(module).values()) if isinstance(value, type)] if module else []
        )
        owners = [cls for cls in classes if cls.__module__ == hook.module]
    installed = []
    for owner in owners:
        original = getattr(owner, "__dict__", {}).get(hook.method)
        if (hook.unless and hasattr(owner, hook.unless)) or (hook.only and not hasattr(owner, hook.only)):
            continue
        if owner is not None and original is not None and not hasattr(original, MARK):
            wrapper = _wrap(agent, hook, original)
            setattr(owner, hook.method, wrapper)
            installed.append(Installed(hook, owner, wrapper, original))
    return installed


def _wrap(agent: Recorder, hook: Hook, original: Any) -> Any:
    before, after, failed = hook.before, hook.after, hook.failed

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        # We keep only an `Exception`: a KeyboardInterrupt that arrives in our code belongs to the engine.
        # With cold caches each function takes time: `needs_attention` is only called if there may be something.
        if (not agent.mark[0] or monotonic() >= agent.next_look) and agent.needs_attention():
            agent.attend()
        if not agent.on:
            return original(self, *args, **kwargs)
        token = None
        if before is not None:
            try:
                with agent.lock:
                    if agent.on:  # in the meantime, another thread may have ended the recording
                        token = before(self, args, kwargs)
            except Exception as error:
                agent.switch_off(error)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:  # a worker that has to end raises SystemExit
            if failed is not None and agent.on:
                _guarded(agent, failed, self, error, token)
            raise
        if after is not None and agent.on:
            try:
                with agent.lock:
                    if agent.on:
                        after(self, args, kwargs, token, result)
            except Exception as error:
                agent.switch_off(error)
        return result

    setattr(wrapper, MARK, agent)
    return wrapper


def _guarded(agent: Recorder, call: Callable[..., None], *args: Any) -> None:
    try:
        with agent.lock:
            if agent.on:
                call(*args)
    except Exception as error:
        agent.switch_off(error)


def restore(installed: Installed) -> str | None:
    """Restore the original method. If somebody wrapped our wrapper, it stays without effect, and a note says whose."""
    owner, method = installed.owner, installed.hook.method
    current = owner.__dict__.get(method)
    if current is installed.wrapper:
        setattr(owner, method, installed.original)
        return None
    return "%s.%s was wrapped again by %s.%s: fdtrace's wrapper is left inert under it" % (
        owner.__name__,
        method,
        getattr(current, "__module__", "?"),
        getattr(current, "__qualname__", type(current).__name__),
    )
