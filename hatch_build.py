"""Compiles the scheduler model and its loop while a wheel is built: the same source, by mypyc, if one asks for it.

Which modules: `[tool.hatch.build.targets.wheel.hooks.custom]` of pyproject.toml. FDTRACE_COMPILE=1 asks for it; without
it a wheel is pure Python, the same for every machine. An editable installation is pure Python in any case: edited code
must be the code that runs.

`hatch-mypyc` is not used: it builds inside the checkout, moves pyproject.toml away meanwhile, leaves its extension
modules beside the sources, and fails where no compiler is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ASK = "FDTRACE_COMPILE"
NEEDS = ["mypy[mypyc]>=1.18", "numpy>=1.26", "setuptools"]  # numpy: for its types
LIBRARY = "fdtrace.replayer._compiled"
"""What all compiled modules are in: inside the package, since an installation adds one package alone."""

SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
library, *files = sys.argv[1:]
sys.argv[1:] = ["build_ext", "--build-lib", "out", "--build-temp", "objects"]
options = ["--ignore-missing-imports", "--follow-imports=silent", "--no-error-summary"]
groups = [(files, library)]
setup(name="fdtrace", ext_modules=mypycify([*options, *files], debug_level="0", separate=groups, target_dir="c"))
"""


class CompileModel(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook of a wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What compiling needs; nothing where nothing is compiled."""
        return NEEDS if _wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the extension modules to a wheel."""
        if version == "editable" or not _wanted():
            return
        self._built = TemporaryDirectory()
        built = Path(self._built.name)
        modules = _compile(Path(self.root), built, self.config["modules"])
        build_data["force_include"].update(
            {str(path): str(path.relative_to(built / "out")) for path in modules}
        )
        build_data.update(pure_python=False, infer_tag=True)

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built."""
        if built := getattr(self, "_built", None):
            built.cleanup()


def _compile(root: Path, built: Path, modules: list[str]) -> list[Path]:
    """The extension modules, built in a copy of the sources. RuntimeError with mypyc's output where that fails."""
    shutil.copytree(root / "fdtrace", built / "fdtrace", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    (built / "setup.py").write_text(SETUP)
    files = sorted(str(path.relative_to(built)) for pattern in modules for path in built.glob(pattern))
    done = subprocess.run(
        [sys.executable, "setup.py", LIBRARY, *files],
        cwd=built, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mypyc could not compile fdtrace's model:\n{done.stdout[-4000:]}")
    return sorted((built / "out").rglob("*" + sysconfig.get_config_var("EXT_SUFFIX")))


def _wanted() -> bool:
    return os.environ.get(ASK) == "1"
