"""The pytest plugin: files of expectations are tests, a marked test is checked before it runs; failures say why."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fdtrace.cli import main
from fdtrace.expectations import expectation_of, read_expectations, verdict_of
from fdtrace.recorder.errors import UsageError

pytest_plugins = ["pytester"]

Captured = pytest.CaptureFixture[str]
PLAIN = ("-p", "no:cacheprovider", "-p", "no:textual-snapshot", "-p", "no:asyncio")
"""The plugin of snapshots removes, when a run ends, what the run around it keeps."""

CASE = {
    "max_num_seqs": 2,
    "max_num_batched_tokens": 16,
    "block_size": 16,
    "max_model_len": 64,
    "num_blocks": 9,
    "num_speculative_tokens": 3,
    "requests": [
        {"id": "a", "prompt": 8, "output": 20},
        {"id": "b", "arrival": 1, "prompt": 40, "output": 4},
    ],
}
HANGS = {
    "max_num_seqs": 2,
    "max_num_batched_tokens": 8,
    "block_size": 8,
    "max_model_len": 48,
    "num_blocks": 8,
    "num_speculative_tokens": 3,
    "requests": [{"id": "a", "prompt": 4, "output": 40}, {"id": "b", "prompt": 4, "output": 40}],
}


def saved(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def toml(source: str, *expectations: str) -> str:
    return f"{source}\n" + "".join(f"[[expect]]\n{text}\n" for text in expectations)


def test_files_are_collected_and_failures_say_why(pytester: pytest.Pytester) -> None:
    """In a process of its own, where the plugin is found as it is installed; the others run in this one."""
    saved(pytester.path / "case.json", CASE)
    saved(pytester.path / "hangs.json", HANGS)
    good = toml('case = "case.json"', 'formula = "exact"', 'formula = "original"\nmax_exceeded = 99')
    saved(pytester.path / "good.fdtrace.toml", good)
    saved(pytester.path / "bad.fdtrace.toml", toml('case = "case.json"', 'formula = "original"'))
    hang = toml('case = "hangs.json"', 'formula = "pr7499"', 'formula = "pr7499"\nhangs = true')
    saved(pytester.path / "hang.fdtrace.toml", hang)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=2)
    text = result.stdout.str()
    assert "original exceeds the limit in" in text
    assert "budget: max_num_batched_tokens = 16" in text
    assert "pr7499 hangs at step" in text
    assert "the budget is 0 with 2 requests decoding" in text
    assert "Traceback" not in text
    assert "expectations.py" not in text


def test_a_trace_is_checked_too(pytester: pytest.Pytester, trace: Path) -> None:
    texts = ('formula = "original"', 'variant = "few: max_num_seqs=2, formula=pr7499, arrivals=steps"')
    saved(pytester.path / "t.fdtrace.toml", toml(f"trace = {json.dumps(str(trace))}", *texts))
    result = pytester.runpytest_inprocess(*PLAIN)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*original exceeds the limit in * steps*", "*budget *tokens ran*"])


def test_a_file_that_expects_nothing_is_an_error(pytester: pytest.Pytester) -> None:
    saved(
        pytester.path / "wrong.fdtrace.toml",
        toml('case = "case.json"', 'formula = "original"\nmax_exceed = 1'),
    )
    result = pytester.runpytest_inprocess(*PLAIN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no expectation `max_exceed`*", "*next: max_exceeded*"])


def test_a_marked_test_is_checked_before_it_runs(pytester: pytest.Pytester) -> None:
    saved(pytester.path / "case.json", CASE)
    saved(
        pytester.path / "mine.py",
        "class Mine:\n    def budget(self, v):\n        return v.max_num_batched_tokens - 8 * v.num_running_decodes\n",
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.fdtrace("case.json", formula="mine.py:Mine")
        def test_mine(fdtrace_replay):
            assert fdtrace_replay["Mine"].exceeded.rows() == []

        @pytest.mark.fdtrace("case.json", formula="original")
        def test_original():
            raise RuntimeError("it must not run")

        @pytest.mark.fdtrace("none.json", formula="original")
        def test_no_file():
            pass

        def test_unmarked(fdtrace_replay):
            pass

        def test_of_their_own():
            pass
        """
    )
    result = pytester.runpytest_inprocess(*PLAIN, "--strict-markers")
    result.assert_outcomes(passed=2, failed=2, errors=1)
    text = result.stdout.str()
    assert "it must not run" not in text
    assert "original exceeds the limit" in text
    assert "none.json cannot be read" in text
    assert "needs @pytest.mark.fdtrace" in text


def test_the_plugin_imports_nothing_of_fdtrace_at_start() -> None:
    code = (
        "import sys, fdtrace.pytest_plugin\n"
        "print([name for name in sys.modules if name.startswith('fdtrace.') or name in ('numpy', 'duckdb')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name for name in eval(done.stdout) if not name.startswith("fdtrace.recorder")}
    assert names == {"fdtrace.pytest_plugin"}


def test_check_reads_the_same_file(tmp_path: Path, capsys: Captured) -> None:
    saved(tmp_path / "case.json", CASE)
    path = saved(
        tmp_path / "x.fdtrace.toml", toml('case = "case.json"', 'formula = "exact"', 'formula = "original"')
    )
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("ok   exact\nFAIL original\n")
    assert "by 3 tokens at most; 0 allowed" in said
    assert main(["check", str(path), "-f", "original"]) == 2
    assert "says itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "is no TOML"),
        ('trace = "a"\ncase = "b"', "one trace or one case"),
        ('trace = "a"', "expects nothing"),
        (toml('trace = "a"\nother = 1', 'formula = "exact"'), "nobody reads `other`"),
        (toml('trace = "a"', "max_exceeded = 0"), "needs a formula or a variant"),
        (toml('trace = "a"', 'formula = "exact"\nmax_exceeded = true'), "`max_exceeded` must be int"),
        (toml('trace = "a"', 'formula = "exact"\nmax_preempted = -1'), "`max_preempted` is -1"),
        (toml('trace = "a"', 'formula = "exact"\nhangs = 1'), "`hangs` must be bool"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        read_expectations(saved(tmp_path / "x.fdtrace.toml", text))


def test_preemptions_and_variants_of_a_case(tmp_path: Path) -> None:
    source = saved(tmp_path / "case.json", {**CASE, "num_blocks": 4})
    few = {"variant": "few: formula=original, num_gpu_blocks_override=4", "max_exceeded": 99}
    verdict = verdict_of(expectation_of(source, {**few, "max_preempted": 0}, "here"))
    assert [line for line in verdict.failures if "preempts" in line]
    assert verdict_of(expectation_of(source, few, "here")).passed
    with pytest.raises(UsageError, match="does not say by which formula"):
        verdict_of(expectation_of(source, {"variant": "few: num_gpu_blocks_override=8"}, "here"))


def test_the_example_of_the_docs_runs(tmp_path: Path) -> None:
    """Its file, its test, and the steps of its workflow, except for those that install."""
    page = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    blocks = {
        kind: re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("toml", "python", "yaml")
    }
    saved(tmp_path / "small.json", HANGS)
    saved(tmp_path / "small.fdtrace.toml", blocks["toml"][0])
    saved(tmp_path / "test_own.py", f"import pytest\n\n\n{blocks['python'][0]}")
    budget = "return v.max_num_batched_tokens - v.num_running_decodes * (v.num_draft_tokens + 1) or 1"
    saved(tmp_path / "my_formula.py", f"class Mine:\n    def budget(self, v):\n        {budget}\n")
    steps = re.findall(r"- run: (.*)", blocks["yaml"][0])
    own = [step for step in steps if "pip install" not in step]
    assert len(own) == len(steps) - 1 == 3
    for step in own:
        words = ["-m", "fdtrace", *step.split()[1:]] if step.startswith("fdtrace ") else step.split()[1:]
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert done.returncode in (0, 1) if "falsify" in step else done.returncode == 0, (
            done.stdout + done.stderr
        )
        assert done.stdout
