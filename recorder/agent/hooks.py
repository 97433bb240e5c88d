"""Wraps methods of an engine's classes, and gives them back."""

from __future__ import annotations

import functools
import sys
from typing import Any, Callable, NamedTuple, Optional, Protocol

MARK = "_fdtrace_hook"
"""Attribute of a wrapper by which its class's user can tell it."""


class Recorder(Protocol):
    """What wrappers need of the agent that they record for."""

    on: bool
    """Whether it records now."""
    lock: Any
    """Held while a hook runs (a `_thread.lock`)."""

    def needs_attention(self) -> bool:
        """Whether `attend` has something to do. Asked in each call, so quick; it never raises."""

    def attend(self) -> None:
        """Carry out what waits."""

    def switch_off(self, error: BaseException) -> None:
        """A hook failed: record no more."""


class Hook(NamedTuple):
    """A method to be wrapped. `before(self, args, kwargs)` gives a token for `after(self, args, kwargs, token,
    result)`; `failed(self, error, token)` is called instead of `after` where the engine's own method raised. `token`
    is None where the recording began during the call. `cls` "": every class of the module that defines the method.
    `unless`: not where the class has that method too; `only`: only there.
    """

    module: str
    cls: str
    method: str
    before: Callable[..., Any]
    after: Optional[Callable[..., None]] = None
    failed: Optional[Callable[..., None]] = None
    unless: str = ""
    only: str = ""


class Installed(NamedTuple):
    """A hook in place: the class that carries it, its wrapper, and the original that it hides."""

    hook: Hook
    owner: type
    wrapper: Any
    original: Any


def install(agent: Recorder, hook: Hook) -> list[Installed]:
    """Wrap the method where its module is loaded; empty where the module, class or method is not there."""
    module = sys.modules.get(hook.module)
    if hook.cls:
        owners = [getattr(module, hook.cls, None)]
    else:
        classes = (
            [value for value in list(vars(module).values()) if isinstance(value, type)] if module else []
        )
        owners = [cls for cls in classes if cls.__module__ == hook.module]
    done = []
    for owner in owners:
        original = getattr(owner, "__dict__", {}).get(hook.method)
        if (hook.unless and hasattr(owner, hook.unless)) or (hook.only and not hasattr(owner, hook.only)):
            continue
        if owner is not None and original is not None and not hasattr(original, MARK):
            wrapper = _wrap(agent, hook, original)
            setattr(owner, hook.method, wrapper)
            done.append(Installed(hook, owner, wrapper, original))
    return done


def _wrap(agent: Recorder, hook: Hook, original: Any) -> Any:
    before, after, failed = hook.before, hook.after, hook.failed

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Only `Exception` is ours to keep: a KeyboardInterrupt that lands in here belongs to the engine.
        if agent.needs_attention():
            agent.attend()
        if not agent.on:
            return original(self, *args, **kwargs)
        token = None
        try:
            with agent.lock:
                if agent.on:  # another thread may have ended the recording meanwhile
                    token = before(self, args, kwargs)
        except Exception as error:
            agent.switch_off(error)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:  # a worker that is told to end raises SystemExit
            if failed is not None and agent.on:
                _guarded(agent, failed, self, error, token)
            raise
        if after is not None and agent.on:
            _guarded(agent, after, self, args, kwargs, token, result)
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
    """Give the original back. Where somebody wrapped it after us, leave ours inert and name theirs."""
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
