"""All uses of Textual's private parts, in one place, for the day when Textual changes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from textual.app import App
from textual.strip import Strip


def is_running(app: App[Any]) -> bool:
    """Whether an app is running, so that it has a screen."""
    return app._running


def leave(app: App[Any]) -> None:
    """End an app without printing anything."""
    app._close_messages_no_wait()


def error_of(app: App[Any]) -> Exception | None:
    """The exception that ended an app."""
    return app._exception


def strips_of(app: App[Any]) -> Iterable[Strip]:
    """The lines of an app's screen as they are painted."""
    return app.screen._compositor.render_strips()
