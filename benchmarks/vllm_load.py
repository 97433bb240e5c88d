"""Requests for an OpenAI-compatible server over HTTP, streamed, with the time of every chunk. Standard library alone.

python benchmarks/vllm_load.py --port 8000 --requests 200 --concurrency 16

`Background` runs it as a process of its own: its clients share no interpreter lock with what measures them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass, field

COUNTERS = {
    "vllm:prompt_tokens_total": "prompt",
    "vllm:generation_tokens_total": "generated",
    "vllm:spec_decode_num_draft_tokens_total": "drafts",
    "vllm:spec_decode_num_accepted_tokens_total": "accepted",
    "vllm:num_preemptions_total": "preemptions",
}
"""The server's own counters that a recording must agree with."""


@dataclass
class Answer:
    """One request: when each chunk came (seconds of a clock that all processes share), how many tokens were in it, all
    of its tokens as the server counted them, and what went wrong.
    """

    begun: float = field(default_factory=time.perf_counter)
    chunks: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str = ""

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks."""
        return [after - before for before, after in zip(self.chunks, self.chunks[1:], strict=False)]


def prompt_of(rng: random.Random, words: int, shared: int = 0) -> str:
    """Made-up words of `tests/vllm/tiny_model.py`; the first `shared` are the same in all, some phrases repeat."""
    first = [f"w{3 + i % 200}" for i in range(shared)]
    phrase = [f"w{rng.randrange(3, 250)}" for _ in range(rng.randrange(3, 8))]
    rest: list[str] = []
    while len(rest) < words:
        rest += phrase if rng.random() < 0.5 else [f"w{rng.randrange(3, 250)}" for _ in range(4)]
    return " ".join(first + rest[:words])


async def ask(port: int, body: dict[str, object]) -> Answer:
    """Send one completion request and read its stream to the end."""
    answer = Answer()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        text = json.dumps(dict(body, stream=True, stream_options={"include_usage": True})).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text
        )
        await writer.drain()
        status = await reader.readline()
        if b" 200 " not in status:
            answer.error = status.decode().strip() or "closed"
        ended = False
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                ended = True
            elif line.startswith(b"data: "):
                _take(answer, json.loads(line[6:]))
        if not answer.error and not ended:
            answer.error = "the stream ended early"
    except OSError as error:
        answer.error = str(error)
    finally:
        if writer is not None:
            writer.close()
    return answer


def _take(answer: Answer, data: dict[str, object]) -> None:
    usage = data.get("usage")
    if isinstance(usage, dict):
        answer.num_prompt_tokens = usage["prompt_tokens"]
        answer.num_output_tokens = usage["completion_tokens"]
    choices = data.get("choices")
    if isinstance(choices, list) and choices:
        answer.chunks.append(time.perf_counter())
        answer.chunk_tokens.append(len(choices[0]["text"].split()))  # a word is a token of the tiny model's
    if "error" in data:
        answer.error = str(data["error"])


def body_of(
    rng: random.Random, model: str, prompt: tuple[int, int], output: tuple[int, int]
) -> dict[str, object]:
    """A request of a random prompt and output length, in tokens."""
    return {
        "model": model,
        "prompt": prompt_of(rng, rng.randint(*prompt), shared=rng.choice((0, 0, 64))),
        "max_tokens": rng.randint(*output),
        "temperature": rng.choice((0.0, 0.0, 0.6)),
        "ignore_eos": rng.random() < 0.8,
    }


async def load(
    port: int,
    *,
    requests: int = 1 << 30,
    seconds: float = 1e9,
    concurrency: int = 16,
    seed: int = 1,
    model: str = "tiny",
    prompt: tuple[int, int] = (8, 300),
    output: tuple[int, int] = (16, 128),
    stop: threading.Event | None = None,
) -> list[Answer]:
    """Keep `concurrency` requests going until `requests` were sent, `seconds` have passed or `stop` is set; all are
    awaited.
    """
    rng = random.Random(seed)
    bodies = iter(lambda: body_of(rng, model, prompt, output), None)
    until = time.perf_counter() + seconds
    answers: list[Answer] = []
    sent = 0

    async def client() -> None:
        nonlocal sent
        while sent < requests and time.perf_counter() < until and not (stop and stop.is_set()):
            sent += 1
            answers.append(await ask(port, next(bodies)))

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return answers


async def open_load(
    port: int, *, requests: int, rate: float, seed: int = 1, model: str = "tiny",
    prompts: tuple[int, int] = (20, 800), outputs: tuple[int, int] = (16, 80),
) -> list[Answer]:  # fmt: skip
    """Send requests at random times, `rate` a second on average, whatever is answered. Equal seeds give equal requests
    at equal times, each with a given number of outputs.
    """
    rng = random.Random(seed)
    times = list(itertools.accumulate(rng.expovariate(rate) for _ in range(requests)))
    bodies: list[dict[str, object]] = [
        {
            "model": model, "prompt": prompt_of(rng, rng.randint(*prompts)), "max_tokens": rng.randint(*outputs),
            "temperature": 0.0, "ignore_eos": True,
        }
        for _ in range(requests)
    ]  # fmt: skip
    begun = time.perf_counter()

    async def client(at: float, body: dict[str, object]) -> Answer:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        return await ask(port, body)

    return await asyncio.gather(*map(client, times, bodies))


class Background:
    """A load under way in a process of its own; `options` are those of the command line."""

    def __init__(self, port: int, **options: object) -> None:
        self._file = tempfile.NamedTemporaryFile("r", suffix=".jsonl")  # noqa: SIM115
        given = {"port": port, "answers": self._file.name, "requests": 1 << 30, **options}
        arguments = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        self._process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.DEVNULL)
        with contextlib.suppress(OSError):  # a client that waits for a processor measures that
            os.setpriority(os.PRIO_PROCESS, self._process.pid, -10)

    def stop(self) -> list[Answer]:
        """Let the requests under way end; every answer."""
        self._process.terminate()
        return self.join()

    def join(self) -> list[Answer]:
        """Every answer, once the load has ended."""
        self._process.wait()
        with self._file:
            return [Answer(**json.loads(line)) for line in self._file]


def counters(port: int) -> dict[str, int]:
    """The server's counters, by our own names; summed over its engines."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
        text = reply.read().decode()
    found = dict.fromkeys(COUNTERS.values(), 0)
    for line in text.splitlines():
        name = COUNTERS.get(line.split("{")[0])
        if name:
            found[name] += int(float(line.rsplit(" ", 1)[1]))
    return found


def settled(port: int) -> dict[str, int]:
    """The counters when they no longer change: the API server's lag behind an idle engine has passed."""
    before: dict[str, int] = {}
    now = counters(port)
    while now != before:
        time.sleep(0.5)
        before, now = now, counters(port)
    return now


def largest_gap(answers: list[Answer], begun: float, ended: float) -> float:
    """Seconds between two chunks of any requests, of those that came in a window of time."""
    chunks = sorted(at for answer in answers for at in answer.chunks if begun <= at < ended)
    return max((after - before for before, after in itertools.pairwise(chunks)), default=0.0)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def summary(answers: list[Answer]) -> dict[str, float]:
    """Output tokens a second, 50th and 99th percentile of the gaps between chunks (ms), and failures."""
    first = min(answer.begun for answer in answers)
    last = max(answer.chunks[-1] for answer in answers if answer.chunks)
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "tokens_per_s": sum(answer.num_output_tokens for answer in answers) / (last - first),
        "itl_p50_ms": 1e3 * percentile(gaps, 0.5),
        "itl_p99_ms": 1e3 * percentile(gaps, 0.99),
        "itl_max_ms": 1e3 * max(gaps, default=0.0),
        "requests": len(answers),
        "failed": sum(bool(answer.error) for answer in answers),
    }


def main() -> None:
    """Send a load and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=int, help="tokens that every request makes (default 16 to 128)")
    parser.add_argument("--answers", help="write every answer to this file, a JSON object a line")
    args = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    output = (args.output, args.output) if args.output else (16, 128)
    answers = asyncio.run(
        load(
            args.port, requests=args.requests, concurrency=args.concurrency, seed=args.seed, model=args.model,
            seconds=args.seconds, output=output, stop=stop,
        )
    )  # fmt: skip
    if args.answers:
        with open(args.answers, "w") as file:
            file.writelines(json.dumps(vars(answer)) + "\n" for answer in answers)
    print(json.dumps(summary(answers)))
    print(json.dumps(counters(args.port)))
    for error in {answer.error for answer in answers if answer.error}:
        print("failed:", error)


if __name__ == "__main__":
    main()
