"""A virtual environment with transformers and a PyTorch for the CPU, for the tests that need the real thing:

    make_environment.py DIRECTORY [VERSION]

PyTorch's build for CPUs is taken where pip's indexes or wheel directories have one (its version ends with `+cpu`), else
the plain one, which brings CUDA's libraries.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRANSFORMERS = "5.24.0"
TORCH = "2.13.0"


def main() -> None:
    """Make it."""
    directory, version = Path(sys.argv[1]), (sys.argv[2:] or [TRANSFORMERS])[0]
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    pip: list[str | Path] = [
        directory / "bin" / "python",
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
    ]
    cpu = subprocess.run([*pip, "install", f"torch=={TORCH}+cpu", "numpy"], capture_output=True, check=False)
    if cpu.returncode:
        subprocess.run([*pip, "install", f"torch=={TORCH}", "numpy"], check=True)
    subprocess.run([*pip, "install", f"transformers=={version}"], check=True)


if __name__ == "__main__":
    main()
