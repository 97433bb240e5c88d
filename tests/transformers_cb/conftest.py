"""A test that failed looks at new recordings when it runs once more."""

from __future__ import annotations

import pytest

from tests.transformers_cb import engine


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Forget the recordings that the tests of this process share, where one of these failed."""
    if report.outcome in ("failed", "rerun"):
        engine.forget_recordings()
