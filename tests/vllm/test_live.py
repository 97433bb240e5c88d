"""A real `vllm serve` on a CPU, recorded under load, against its own `/metrics`. `make test-vllm` runs it.

One server serves all but the last tests, in the order in which they stand: it is killed in the end. So they are one
xdist group.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import vllm_load, vllm_server
from benchmarks.vllm_server import SPECULATION, Server, fdtrace, recorded, rows

pytestmark = [
    pytest.mark.skipif(not os.environ.get("VLLM_PYTHON"), reason="VLLM_PYTHON names no Python that has vLLM"),
    pytest.mark.xdist_group("vllm"),
]
SMALL = ("--num-gpu-blocks-override", "40")
"""So few KV blocks that requests are preempted."""

PLUGIN = Path(__file__).parent / "on_cpu"


def on_cpu(*wanted: str) -> dict[str, str]:
    """Variables that let vLLM do on a CPU what its platform leaves out: see `on_cpu.py`."""
    return {
        "PYTHONPATH": os.pathsep.join((str(PLUGIN), str(vllm_server.ROOT))),
        "VLLM_TEST_ON_CPU": ",".join(wanted),
    }


def drafts() -> dict[str, str]:
    """Those for drafts, where this vLLM does not take them on a CPU by itself."""
    (package,) = vllm_server.PYTHON.parents[1].glob("lib/*/site-packages/vllm")
    refuses = "spec decode is not supported" in (package / "v1/worker/cpu_model_runner.py").read_text()
    kernels, sampler = package / "utils/cpu_triton_utils.py", package / "v1/sample/rejection_sampler.py"
    asks = "USE_FP64_GUMBEL" in sampler.read_text() and "USE_FP64_GUMBEL" not in kernels.read_text()
    return on_cpu("drafts") if refuses or asks else {}


class Load:
    """Requests under way in a thread."""

    def __init__(self, port: int, **options: Any) -> None:
        self.answers: list[vllm_load.Answer] = []
        self.thread = threading.Thread(target=self._run, args=(port, options))
        self.thread.start()

    def _run(self, port: int, options: Any) -> None:
        self.answers = asyncio.run(vllm_load.load(port, **options))

    def join(self) -> list[vllm_load.Answer]:
        """Every answer, when the last has come."""
        self.thread.join()
        return self.answers


def failures(answers: list[vllm_load.Answer]) -> set[str]:
    return {answer.error for answer in answers if answer.error}


def answer_of_a_new_request(server: Server) -> None:
    """Wait for it: steps end in their order, so by then the server has counted all those that were under way before."""
    answer = asyncio.run(vllm_load.ask(server.port, {"model": "tiny", "prompt": "w3 w4 w5", "max_tokens": 1}))
    assert not answer.error


def difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def held(server: Server) -> list[tuple[int, int, int]]:
    """Of each process, its pid, descriptors and threads; its clients' connections it closes when it likes."""
    found = []
    for process in server.tree():
        opened = len(process.net_connections("unix"))
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                opened += not os.readlink(link).startswith("socket:")
        found.append((process.pid, opened, process.num_threads()))
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vllm_server.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with Server(model, *SMALL, *SPECULATION, more=drafts()) as running:
        running.wait()
        yield running


AT_WORK = re.compile("VLLM::(EngineCore|Worker)")


def with_a_scheduler(server: Server) -> set[int]:
    """The API server, where this vLLM loads the scheduler's module in it too: it makes no step there."""
    told = (
        "import sys, vllm.entrypoints.openai.api_server; print('vllm.v1.core.sched.scheduler' in sys.modules)"
    )
    command = (vllm_server.PYTHON, "-c", told)
    done = subprocess.run(command, env=vllm_server.environment(), capture_output=True, text=True, check=True)
    return {server.pid} if done.stdout.split()[-1] == "True" else set()


def hooked(server: Server) -> set[int]:
    """Processes of the server that map a ring."""
    return {
        process.pid
        for process in server.tree()
        if b"fdtrace-rings" in Path(f"/proc/{process.pid}/maps").read_bytes()
    }


def test_attached_idle_every_token_of_a_load_is_in_the_trace(server: Server, tmp_path: Path) -> None:
    trace, before = tmp_path / "t.duckdb", vllm_load.settled(server.port)
    recording = vllm_server.attach(server.pid, trace)
    at_work = {process.pid for process in server.tree() if AT_WORK.match(process.name())}
    assert at_work <= hooked(server) <= at_work | with_a_scheduler(server)
    answers, after = [], before
    while (
        difference(after, before)["preemptions"] == 0
    ):  # on a slow machine, fewer requests run at the same time
        answers += Load(server.port, requests=80, concurrency=20).join()
        after = vllm_load.settled(server.port)
    vllm_server.detach(recording)
    assert not failures(answers)
    assert not hooked(server)
    assert recorded(trace) == difference(after, before)
    assert recorded(trace)["preemptions"] > 0
    assert recorded(trace)["accepted"] > 0
    told = (
        sum(answer.num_prompt_tokens for answer in answers),
        sum(answer.num_output_tokens for answer in answers),
    )
    assert (recorded(trace)["prompt"], recorded(trace)["generated"]) == told
    unknown = "SELECT count(*) FROM step WHERE forward_us IS NULL OR num_predicted_tokens <> num_tokens"
    assert rows(trace, unknown) == [(0,)]
    assert rows(
        trace, "SELECT count(*) FROM request WHERE arrived_step IS NULL OR finish_reason IS NULL"
    ) == [(0,)]
    assert rows(trace, "SELECT ended_by, state FROM trace") == [("interrupt", "complete")]
    late = "SELECT count(*) FROM request WHERE sent_at IS NULL OR sent_at > arrived_at OR priority <> 0"
    assert rows(trace, late) == [(0,)]
    waited = "SELECT median(epoch_ns(arrived_at) - epoch_ns(sent_at)) BETWEEN 0 AND 10e9 FROM request"
    assert rows(trace, waited) == [(True,)]
    over = "SELECT count(*) FROM budget WHERE token_budget_left < 0 OR input_budget_left < 0"
    assert rows(trace, over) == [(0,)]
    made = """SELECT count(*) FROM request r JOIN (SELECT DISTINCT ON (request) * FROM step_request
              ORDER BY request, step DESC) q USING (request)
              WHERE q.num_computed_tokens + 1 + if(q.kind = 'prefill', q.num_tokens, q.num_accepted_tokens)
                    < r.num_prompt_tokens + r.num_output_tokens"""
    assert rows(trace, made) == [(0,)]


def test_attached_under_load_twice_no_request_fails_and_the_counters_enclose_the_trace(
    server: Server, tmp_path: Path
) -> None:
    known = 0
    for attempt in range(8):
        if attempt >= 2 and known:
            break  # the engine may be ahead of its clients, and idle at the moment of attaching
        stop = threading.Event()
        before = vllm_load.counters(server.port)["generated"]
        load = Load(server.port, concurrency=16, stop=stop)
        while vllm_load.counters(server.port)["generated"] < before + 100:
            time.sleep(0.2)  # the first drafts are proposed by code that is compiled then
        trace, first = tmp_path / f"{attempt}.duckdb", vllm_load.counters(server.port)
        recording = vllm_server.attach(server.pid, trace)
        answer_of_a_new_request(server)
        second = vllm_load.counters(server.port)
        time.sleep(3)
        stop.set()
        answers = load.join()
        after = vllm_load.settled(server.port)
        vllm_server.detach(recording)
        assert not failures(answers)
        least, most, found = difference(after, second), difference(after, first), recorded(trace)
        assert all(least[key] <= found[key] <= most[key] for key in found), (least, found, most)
        assert found["generated"] > 0
        assert rows(trace, "SELECT count(*) FROM request WHERE num_prompt_tokens IS NULL") == [(0,)]
        there = "SELECT count(*) FROM step_request JOIN request USING (request) WHERE arrived_step IS NULL"
        known += rows(trace, there)[0][0]
    assert known > 0, "nothing ran whenever it attached"


def test_attaching_and_detaching_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    stop = threading.Event()
    load = Load(server.port, seconds=60, concurrency=8, stop=stop)
    time.sleep(1)
    for i in range(2):
        vllm_server.detach(vllm_server.attach(server.pid, tmp_path / f"{i}.duckdb"))
    stop.set()
    assert not failures(load.join())
    vllm_load.settled(server.port)
    before = held(server)
    for i in range(2, 4):
        vllm_server.detach(vllm_server.attach(server.pid, tmp_path / f"{i}.duckdb"))
    assert held(server) == before
    assert not hooked(server)


def test_killed_in_the_middle_the_trace_holds_what_was_committed_and_says_how_it_ended(
    server: Server, tmp_path: Path
) -> None:
    trace = tmp_path / "t.duckdb"
    recording = vllm_server.attach(server.pid, trace)
    before, seen, stop = vllm_load.counters(server.port)["generated"], 0, threading.Event()
    load = Load(server.port, seconds=60, concurrency=8, stop=stop)
    while seen < 300:
        time.sleep(0.2)
        seen = vllm_load.counters(server.port)["generated"] - before
    for process in server.tree():
        process.send_signal(signal.SIGKILL)
    stop.set()
    load.join()
    recording.communicate(timeout=900)
    assert rows(trace, "SELECT state FROM trace") == [("complete",)]
    assert rows(trace, "SELECT ended_by FROM trace")[0][0] in ("exit", "signal 9")
    steps = rows(trace, "SELECT count(*), max(step) + 1 FROM step")
    assert steps[0][0] == steps[0][1] > 0
    assert recorded(trace)["generated"] >= seen > 0  # what a client was told of had been committed


def test_a_server_is_recorded_from_its_start_in_one_process(model: Path, tmp_path: Path) -> None:
    trace, script = tmp_path / "t.duckdb", Path(__file__).parent / "in_process.py"
    environment = vllm_server.environment() | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "PYTHONPATH": str(vllm_server.ROOT), **drafts(),
    }  # fmt: skip
    command = fdtrace("record", "-o", trace, "--", vllm_server.PYTHON, script, model)
    done = psutil.Popen(command, env=os.environ | environment, stdout=-1, text=True)
    told, _ = done.communicate(timeout=900)
    assert done.returncode == 0
    prompt, generated = map(int, told.split()[-2:])
    found = recorded(trace)
    assert (found["prompt"], found["generated"]) == (prompt, generated)
    assert rows(trace, "SELECT count(*) FROM step WHERE forward_us IS NULL") == [(0,)]
    assert rows(trace, "SELECT count(*) FROM request WHERE finish_reason = 'length'") == [(12,)]
    assert rows(trace, "SELECT count(*) FROM engine") == [(1,)]


def test_each_data_parallel_engine_is_a_row_and_their_counters_add_up(model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    options = (*SMALL, *SPECULATION, "--data-parallel-size", "2")
    with Server(model, *options, ranks=2, more=drafts()) as server:
        server.wait()
        compare(server, trace)
    assert rows(trace, "SELECT engine_id, dp_rank FROM engine ORDER BY engine_id") == [(0, 0), (1, 1)]
    assert rows(trace, "SELECT count(DISTINCT engine_id) FROM step") == [(2,)]


def test_asynchronous_scheduling_is_recorded_as_the_server_counts_it(model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t.duckdb"
    with Server(model, *SMALL, "--async-scheduling", more=on_cpu("asynchronous")) as server:
        server.wait()
        compare(server, trace)
    assert rows(trace, "SELECT config->>'scheduler_cls' FROM engine") == [("AsyncScheduler",)]
    assert recorded(trace)["preemptions"] > 0


def compare(server: Server, trace: Path) -> None:
    """Record a load from before it to after it: what the trace counts is what the server and its clients did."""
    before = vllm_load.settled(server.port)
    recording = vllm_server.attach(server.pid, trace)
    answers = Load(server.port, requests=60, concurrency=24).join()
    after = vllm_load.settled(server.port)
    vllm_server.detach(recording)
    assert not failures(answers)
    assert recorded(trace) == difference(after, before)
    assert recorded(trace)["generated"] == sum(answer.num_output_tokens for answer in answers)
