"""What a driven FastDeploy scheduler does in two parts, or has not done yet: the end of a request, its preprocessing.

`fastdeploy_events.py` imports it from its own directory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class PendingPreprocessing:
    """The preprocessing of a request that was not done at the recorded call."""

    def done(self) -> bool:
        return False


class FailedPreprocessing:
    """The preprocessing of a request that had failed at the recorded call."""

    def done(self) -> bool:
        return True


class Finishing:
    """One call of `finish_requests` in its own thread. It stops between its two sections of the lock."""

    def __init__(self, finish: Callable[[str], Any], request_id: str) -> None:
        self._stopped, self._goes_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(finish, request_id), daemon=True)
        self._thread.start()
        self._stopped.wait()

    def _run(self, finish: Callable[[str], Any], request_id: str) -> None:
        _HERE.finishing = self
        try:
            finish(request_id)
        finally:
            self._stopped.set()  # also if it ends without a second section

    def wait(self) -> None:
        """Called in its thread after the first section."""
        self._stopped.set()
        self._goes_on.wait()

    def end(self) -> None:
        """Let it run its second section, and wait for its end."""
        self._goes_on.set()
        self._thread.join()


_HERE = threading.local()
"""`finishing`: the `Finishing` whose thread this is."""

BETWEEN = ("write_cache_to_storage", "write_cache_to_storage_decode")
"""The cache manager's methods. If the request was running, `finish_requests` calls one of them between its sections."""


def stopping(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same method. In the thread of a `Finishing` it first waits."""

    def between(request: Any) -> Any:
        finishing = getattr(_HERE, "finishing", None)
        if finishing is not None:
            finishing.wait()
        return write(request)

    return between
