"""The pytest plugin: `*.fdtrace.toml` files are tests, and a marked test replays a trace before it runs.

    @pytest.mark.fdtrace("t.duckdb", formula="my_formula.py:Mine", max_exceeded=0)
    def test_mine(fdtrace_replay):
        assert fdtrace_replay["Mine"].outcome.num_stalls < 10

pytest imports this module at each start, so it imports nothing of fdtrace until something asks for a replay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fdtrace.expectations import ReplayExpectation

FILES = ".fdtrace.toml"
MARKER = (
    "fdtrace(source, *, formula=None, variant=None, policy=None, max_exceeded=0, max_preempted=None, hangs=False, "
    "as_recorded=False): replay a trace or a case before the test; the test fails if it does more than is expected"
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Files of expectations are collected as tests."""
    if not file_path.name.endswith(FILES):
        return None
    file: pytest.Collector = FdtraceFile.from_parent(parent, path=file_path)
    return file


class ReplayFailed(Exception):
    """A replay does more than is expected."""


class FdtraceFile(pytest.File):
    """A file of expectations."""

    def collect(self) -> Iterable[pytest.Item]:
        """One test for each expectation."""
        from fdtrace.expectations import read_expectations
        from fdtrace.recorder.errors import FdtraceError

        try:
            expectations = read_expectations(self.path)
        except FdtraceError as error:
            raise self.CollectError(str(error)) from None
        names = [expectation.name for expectation in expectations]
        for i, expectation in enumerate(expectations):
            name = names[i] if names.count(names[i]) == 1 else f"{names[i]}-{i + 1}"
            yield FdtraceItem.from_parent(self, name=name, expectation=expectation)


class FdtraceItem(pytest.Item):
    """One expectation as a test."""

    def __init__(self, *, expectation: ReplayExpectation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.expectation = expectation

    def runtest(self) -> None:
        """Replay, and compare."""
        _check(self.expectation)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The failure without a traceback: it is the replay's, not the code's."""
        if _is_ours(excinfo.value):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it stands."""
        return self.path, None, f"fdtrace: {self.name}"


def _is_ours(error: BaseException) -> bool:
    from fdtrace.recorder.errors import FdtraceError

    return isinstance(error, (ReplayFailed, FdtraceError))


def _check(expectation: ReplayExpectation) -> None:
    from fdtrace.expectations import verdict_of
    from fdtrace.recorder.printable import printable_lines

    verdict = verdict_of(expectation)
    if not verdict.passed:
        raise ReplayFailed(printable_lines(verdict.text, ""))


def _marked(item: pytest.Item) -> ReplayExpectation | None:
    """What a test's marker expects; None: it has none. Paths are relative to the test's file."""
    marker = item.get_closest_marker("fdtrace")
    if marker is None:
        return None
    from fdtrace.expectations import expectation_of
    from fdtrace.recorder.errors import UsageError

    if len(marker.args) != 1:
        raise UsageError(
            f"{item.name}: the marker fdtrace takes one trace or case", hint=f"@pytest.mark.{MARKER}"
        )
    values = dict(marker.kwargs)
    formula = values.get("formula")
    if isinstance(formula, str) and ".py:" in formula:
        file, _, name = formula.rpartition(":")
        values["formula"] = f"{item.path.parent / file}:{name}"
    return expectation_of(item.path.parent / marker.args[0], values, item.name)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Before a marked test runs, its replay must do what is expected."""
    if pyfuncitem.get_closest_marker("fdtrace") is not None:
        from fdtrace.recorder.errors import FdtraceError

        try:
            expectation = _marked(pyfuncitem)
            assert expectation is not None
            _check(expectation)
        except (ReplayFailed, FdtraceError) as error:
            pytest.fail(str(error), pytrace=False)
    return (yield)


@pytest.fixture
def fdtrace_replay(request: pytest.FixtureRequest) -> Any:
    """The runs of what the test's marker names: `fdtrace.replay` of a trace, `fdtrace.simulate` of a case."""
    import fdtrace
    from fdtrace.recorder.errors import FdtraceError
    from fdtrace.searching.search_options import is_case

    try:
        expectation = _marked(request.node)
        if expectation is None:
            pytest.fail(
                'the fixture fdtrace_replay needs @pytest.mark.fdtrace("t.duckdb", formula=…)', pytrace=False
            )
        if is_case(expectation.source):
            if expectation.formula is None:
                pytest.fail(
                    "of a case, the fixture fdtrace_replay needs a formula in the marker", pytrace=False
                )
            return fdtrace.simulate(expectation.source, expectation.formula, policy=expectation.policy)
        return fdtrace.replay(
            expectation.source,
            expectation.formula,
            variants=() if expectation.variant is None else (expectation.variant,),
            policy=expectation.policy,
            as_recorded=expectation.as_recorded,
        )
    except FdtraceError as error:
        pytest.fail(str(error), pytrace=False)
