"""What an installation adds to an environment: one package, which works beside anybody's folders of whatever name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DECOYS = ("recorder", "replayer", "tui", "json", "numpy", "duckdb", "queue")
"""Names of modules that the commands import, ours and others', which a project may have for its own."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, as `pip wheel` builds it if nobody asks for a compiled one."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(directory), str(ROOT)]
    environment = {name: value for name, value in os.environ.items() if name != "FDTRACE_COMPILE"}
    subprocess.run(command, check=True, env=environment)
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with that wheel; what it depends on is read from this environment."""
    directory = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    python = directory / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*command, str(wheel)], check=True)
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # A directory named in a .pth file comes after this environment's own, and its .pth files are not read.
    (Path(packages) / "zz_dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project, with folders and files called as our packages and those that we import."""
    for name in DECOYS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(
            f"raise RuntimeError('{name} of the project was imported')\n"
        )
    (tmp_path / "select.py").write_text("raise RuntimeError('select.py of the project was imported')\n")
    (tmp_path / "boxes").mkdir(mode=0o700)
    return tmp_path


def test_a_wheel_holds_one_package_and_the_two_files_that_arm(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert len(names) == len(set(names)), "nothing is in it twice"
    assert wheel.name.endswith("-py3-none-any.whl"), "nobody asked for a compiled one"
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"fdtrace", "fdtrace.pth", "_fdtrace_arm.py"}
    for floor in ("fdtrace", "recorder", "replayer", "tui"):
        prefix = "" if floor == "fdtrace" else f"{floor}/"
        for path in (ROOT / floor).rglob("*.py"):
            if path.parent.name == "pth":
                continue  # at the top
            assert f"fdtrace/{prefix}{path.relative_to(ROOT / floor)}" in names


@pytest.mark.slow
def test_the_commands_work_beside_a_projects_folders_of_any_name(installed: Path, project: Path) -> None:
    engine = ROOT / "tests" / "recorder" / "played" / "engine.py"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("FDTRACE", "PYTHON"))
    }
    environment["FDTRACE_DIR"] = str(project / "boxes")

    def run(*arguments: str) -> str:
        command = [str(installed.with_name("fdtrace")), *arguments]
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import fdtrace.recorder as r; print(r.__file__)"
    found = subprocess.run(
        [installed, "-c", where], cwd="/", capture_output=True, text=True, check=True
    ).stdout
    assert str(installed.parents[1]) in found
    run("record", "-o", "t.duckdb", "--", str(installed), str(engine), "--steps", "40")
    assert "t.duckdb" in run("info", "t.duckdb")
    assert (
        run("sql", "t.duckdb", "SELECT count(*) AS steps FROM step", "--format", "json") == '{"steps":40}\n'
    )
    assert "as recorded" in run("replay", "t.duckdb", "--report", "--as-recorded", "-f", "pr7499")
    replayed = json.loads(run("replay", "t.duckdb", "--json", "--as-recorded", "-f", "pr7499"))
    assert replayed
    run("formulas")
