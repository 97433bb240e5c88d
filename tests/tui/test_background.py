"""Work off the screen's thread: what counts, what is given up, and that no failure ends the screen."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui.background import Background, Deliver, Work


class Asked:
    """A background, and what it has said."""

    def __init__(self, deliver: Callable[[str], None] | None = None, **options: Any) -> None:
        self.said: list[str] = []
        self.failed: list[str] = []
        self.background: Background[str] = Background(
            "test", deliver or self.said.append, self.failed.append, **options
        )

    async def idle(self) -> None:
        """Until nothing is being done."""
        while self.background.busy:
            await asyncio.sleep(0.005)


def says(
    *words: str, after: threading.Event | None = None, begun: threading.Event | None = None
) -> Work[str]:
    """Work that says words, once something has happened."""

    def work(deliver: Deliver[str], _cancelled: Cancelled) -> None:
        if begun is not None:
            begun.set()
        if after is not None:
            assert after.wait(60)
        for word in words:
            deliver(word)

    return work


async def test_only_the_latest_counts() -> None:
    asked, go = Asked(), threading.Event()
    asked.background.want(says("first", after=go))
    asked.background.want(says("second"))
    asked.background.want(says("third", "and more"))
    go.set()
    await asked.idle()
    assert asked.said == ["third", "and more"]


async def test_what_has_begun_may_deliver_all_the_same() -> None:
    asked, go, begun = Asked(finish_begun=True), threading.Event(), threading.Event()
    asked.background.want(says("first", after=go, begun=begun))
    assert begun.wait(60)
    asked.background.want(says("second"))
    asked.background.want(says("third"))
    go.set()
    await asked.idle()
    assert asked.said == ["first", "third"]


async def test_every_piece_counts_where_it_is_asked_for() -> None:
    asked = Asked(every=True)
    for word in ("first", "second", "third"):
        asked.background.want(says(word))
    await asked.idle()
    assert asked.said == ["first", "second", "third"]


async def test_what_comes_at_once_is_there_at_once() -> None:
    asked = Asked(wait=60.0)
    asked.background.want(says("at once"))
    assert asked.said == ["at once"]
    assert not asked.background.busy
    await asyncio.sleep(0.05)
    assert asked.said == ["at once"]


async def test_work_is_told_that_it_does_not_count_any_more() -> None:
    asked, stopped, begun = Asked(), threading.Event(), threading.Event()

    def work(_deliver: Deliver[str], cancelled: Cancelled) -> None:
        begun.set()
        while not cancelled():
            stopped.wait(0.005)
        stopped.set()

    asked.background.want(work)
    assert begun.wait(60)
    asked.background.drop()
    assert stopped.wait(60)
    await asked.idle()
    assert asked.said == asked.failed == []


def fails(error: BaseException) -> Work[str]:
    def work(_deliver: Deliver[str], _cancelled: Cancelled) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UsageError("what", why="why", hint="next"), "what\n  why: why\n  next: next"),
        (ZeroDivisionError("division by zero"), "unexpected ZeroDivisionError: division by zero"),
        (SystemExit(0), "unexpected SystemExit: 0"),
    ],
)
async def test_a_failure_is_said_and_what_is_wanted_next_is_done(error: BaseException, said: str) -> None:
    asked = Asked()
    asked.background.want(fails(error))
    await asked.idle()
    assert asked.failed == [said]
    asked.background.want(says("next"))
    await asked.idle()
    assert asked.said == ["next"]


async def test_a_failure_to_show_a_result_is_said_too() -> None:
    def deliver(_what: str) -> None:
        raise ValueError("no room")

    asked = Asked(deliver)
    asked.background.want(says("first"))
    await asked.idle()
    assert asked.failed == ["unexpected ValueError: no room"]


async def test_once_closed_nothing_is_delivered_or_begun() -> None:
    asked, go, begun, ended = Asked(every=True), threading.Event(), threading.Event(), threading.Event()
    asked.background.want(says("first", after=go, begun=begun))

    def never(_deliver: Deliver[str], _cancelled: Cancelled) -> None:
        ended.set()

    asked.background.want(never)
    assert begun.wait(60)
    asked.background.close()
    asked.background.want(never)
    go.set()
    while asked.background._thread is not None and asked.background._thread.is_alive():
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.01)
    assert asked.said == []
    assert not ended.is_set()


def test_a_piece_that_is_still_being_done_does_not_keep_the_process() -> None:
    code = (
        "import asyncio, threading\n"
        "from fdtrace.tui.background import Background\n"
        "async def main():\n"
        "    Background('x', print, print).want(lambda deliver, cancelled: threading.Event().wait())\n"
        "asyncio.run(main())\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)
