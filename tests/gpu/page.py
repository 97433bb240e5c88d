"""docs/gpu.md, from what a check found."""

from __future__ import annotations

from typing import Any

HEAD = """# On a GPU

`make test-gpu` checks fdtrace on a machine with one NVIDIA GPU, Python 3.12, PyTorch and transformers 5. It is one
command and takes at most seven minutes. If that machine has no network, run `tests/gpu/wheels.sh` before: it collects
the needed packages in `.gpu-wheels` (under 60 MiB), which you copy with the tree. The check creates a model of 1.1
billion random weights, runs transformers' continuous batching under load, and attaches to it from another process by
ptrace, as to any server. On a machine without a GPU the same check runs with a tiny model, and skips what needs a GPU.

`make test-gpu GPU_PAGE=docs/gpu.md` writes this page again.

"""


BUSY = """Checks that need a GPU are skipped. Times on a CPU say little: other programs use the CPU too.

"""


def page(found: dict[str, Any]) -> str:
    """The page."""
    machine = found["machine"]
    on = machine.get("gpu") if found["device"] == "cuda" else "a CPU, without a GPU"
    lines = [
        HEAD,
        f"## Last run: {on}\n\n",
        f"fdtrace in Python {found['fdtrace_python']}; the engine: Python {machine['python']}, "
        f"PyTorch {machine['torch']}, transformers {machine['transformers']}; "
        f"{found['seconds']} s in all.\n\n",
        BUSY if found["device"] == "cpu" else "",
        "| part | what it shows | | found |\n|---|---|---|---|\n",
    ]
    for part in found["parts"]:
        told = part.get("why") or ", ".join(_figure(name, value) for name, value in part["figures"].items())
        lines.append(f"| `{part['part']}` | {part['about']} | {part['state']} | {told} |\n")
    return "".join(lines)


def _figure(name: str, value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(f"{one:.3f}" for one in value)
    elif isinstance(value, float):
        value = f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{name.replace('_', ' ')} {value}"
