"""A real `vllm serve` on a tiny random model, and what a recording of it holds beside what its `/metrics` say.

VLLM_PYTHON names the Python of an environment that has vLLM (`make test-vllm` makes one in .venv-vllm).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import psutil

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
NGRAM = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
SPECULATION = ("--speculative-config", NGRAM)
ONE_PROCESS = ("--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor")
"""Scheduler and model in EngineCore, as with a single GPU; on a CPU vLLM makes a worker of its own, and both spin."""

PATIENCE = 180.0
"""Seconds in which a server with one worker answers, on a machine that has other work too."""

COUNTS = """
WITH first AS (
    SELECT DISTINCT ON (engine_id, request) engine_id, request, kind, num_computed_tokens AS computed
    FROM step_request ORDER BY engine_id, request, step
), answered AS (
    SELECT DISTINCT engine_id, request, r.num_prompt_tokens AS n
    FROM request r JOIN step_request q USING (engine_id, request)
    WHERE (q.kind = 'prefill' AND q.num_computed_tokens + q.num_tokens = r.num_prompt_tokens)
       OR (q.kind = 'decode' AND q.num_computed_tokens = r.num_prompt_tokens)
)
SELECT (SELECT coalesce(sum(n), 0) FROM answered)::BIGINT AS prompt,
       (SELECT coalesce(sum(r.num_output_tokens - CASE WHEN f.kind = 'decode'
                            THEN greatest(f.computed - r.num_prompt_tokens, 0) ELSE 0 END), 0)
        FROM request r JOIN first f USING (engine_id, request))::BIGINT AS generated,
       sum(num_draft_tokens)::BIGINT AS drafts, sum(num_accepted_tokens)::BIGINT AS accepted,
       sum(num_preempted)::BIGINT AS preemptions FROM step
"""
"""What `/metrics` count: a prompt with its request's first token, of a request that ran before what it made since."""


def recorded(trace: Path) -> dict[str, int]:
    """A recording's sums, by the names of `vllm_load.COUNTERS`."""
    with duckdb.connect(str(trace), read_only=True) as db:
        found = db.execute(COUNTS)
        names = [column[0] for column in found.description]
        return dict(zip(names, (value or 0 for value in found.fetchall()[0]), strict=True))


def environment(ranks: int = 1) -> dict[str, str]:
    """What vLLM's CPU build needs to serve a model from a directory, and nothing of fdtrace's."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FDTRACE")}
    return kept | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(str(cores[i % len(cores)]) for i in range(ranks)),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_model(directory: Path, layers: int = 2) -> Path:
    """The tiny model, made where it is not there yet."""
    script = ROOT / "tests" / "vllm" / "tiny_model.py"
    subprocess.run(
        [PYTHON, script, directory, str(layers)], check=True, env=environment(), capture_output=True
    )
    return directory


class Server:
    """`vllm serve` and its tree; a context manager. `command` comes before vLLM's own, as `fdtrace record`; `ranks`:
    workers over all its engines; `more`: variables of its environment. `apart`: the engine is one process, on a
    processor of its own; all else, this process too, is on the others: a machine that has processors to spare.
    """

    def __init__(
        self,
        model: Path,
        *options: str,
        command: tuple[str, ...] = (),
        log: Path | None = None,
        ranks: int = 1,
        more: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        self.others: set[int] = set()
        if apart:
            *others, own_core = sorted(os.sched_getaffinity(0))
            self.others, options = set(others), (*options, *ONE_PROCESS)
            command = ("taskset", "-c", str(own_core), *command)
            os.sched_setaffinity(0, self.others)
        self.port, self.patience = free_port(), PATIENCE * ranks
        self.log = log or Path(tempfile.mkstemp(prefix="vllm-", suffix=".log")[1])
        own = (
            str(PYTHON.with_name("vllm")), "serve", str(model), "--port", str(self.port), "--host", "127.0.0.1",
            "--served-model-name", "tiny", "--enforce-eager", "--dtype", "float32", "--max-model-len", "1024",
            "--max-num-seqs", "64", "--max-num-batched-tokens", "512",
        )  # fmt: skip
        with self.log.open("w") as out:
            self.process = subprocess.Popen(
                [*command, *own, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(ranks) | dict(more or {}),
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()

    def wait(self) -> None:
        """Until it answers; RuntimeError with the end of its log where it does not."""
        until = time.monotonic() + self.patience
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(self.url("health"), timeout=5):
                return
            time.sleep(0.2)
        raise RuntimeError(f"vllm serve did not start:\n{self.log.read_text()[-3000:]}")

    def url(self, path: str) -> str:
        """An address of the server."""
        return f"http://127.0.0.1:{self.port}/{path}"

    def tree(self) -> list[psutil.Process]:
        """The server's processes, itself first."""
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def steady(self) -> None:
        """Where we may, let the API server go before the engine, whose processes spin while they wait for each other:
        on few cores it would wait for seconds. It helps across sessions only where the kernel does not group them.
        """
        grouped = Path("/proc/sys/kernel/sched_autogroup_enabled")
        if grouped.exists() and grouped.read_text().strip() == "1":
            print("note: `sysctl kernel.sched_autogroup_enabled=0` makes this less noisy", flush=True)
        for thread in psutil.Process(self.pid).threads():
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread.id, -10)
            if self.others:
                os.sched_setaffinity(thread.id, self.others)

    def stop(self) -> None:
        """End it and everything that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            tree = self.tree()
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()


def fdtrace(*arguments: object) -> list[str]:
    """The command line of `fdtrace`."""
    return [sys.executable, "-m", "fdtrace", *map(str, arguments)]


def attach(pid: int, trace: Path, *options: object) -> subprocess.Popen[str]:
    """`fdtrace attach` under way, attached when this returns; RuntimeError with what it said where it is not."""
    process = subprocess.Popen(
        fdtrace("attach", pid, "-o", trace, *options),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    said = ""
    while "attached in" not in said:
        line = process.stderr.readline()
        if not line:
            raise RuntimeError(f"fdtrace attach failed: {said}")
        said += line
    process.said = said  # type: ignore[attr-defined]
    return process


def attached_ms(process: Any) -> float:
    """How long the attaching took, as `fdtrace attach` says."""
    return float(process.said.split("attached in ")[1].split(" ms")[0])


def detach(process: subprocess.Popen[str]) -> None:
    """End the recording as Ctrl-C does, and wait for its trace."""
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    if process.returncode:
        raise RuntimeError(f"fdtrace attach ended with {process.returncode}: {said}")


def rows(trace: Path, query: str) -> list[tuple[Any, ...]]:
    """The result of a query on a trace."""
    with duckdb.connect(str(trace), read_only=True) as db:
        return db.execute(query).fetchall()


def report(name: str, figures: dict[str, Any]) -> None:
    """One line of a benchmark."""
    told = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(f"{name}: {json.dumps(told)}", flush=True)
