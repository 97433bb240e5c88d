"""A real PostgreSQL (Debian's) and a real S3-compatible server (SeaweedFS, of a package), each in its own folder."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PASSWORD = "a-password-of-the-tests"
KEY, SECRET = "fdtrace-tests", "a-secret-key-of-the-tests"
BUCKET = "lake"
WAIT = 120.0
"""Seconds that a server may take to start or to end on a loaded machine."""


def postgres_bin() -> Path | None:
    """The folder of `initdb` and `postgres`; None: PostgreSQL is not installed."""
    for folder in (*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), Path("/usr/bin")):
        if (folder / "initdb").exists():
            return folder
    return None


def weed() -> str | None:
    """SeaweedFS's program beside this Python, or on the path; None: it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class Postgres:
    """A PostgreSQL that listens on a socket in its folder alone, with a password; `name` says the rest."""

    def __init__(self) -> None:
        found = postgres_bin()
        assert found is not None
        self.bin, self.folder = found, Path(tempfile.mkdtemp(prefix="fdtrace-pg-"))
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.folder.chmod(0o755)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self._run(
            "initdb", "-D", self.data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}", "-N"
        )
        password.unlink()
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def name(self) -> str:
        return f"dbname=postgres user=postgres host={self.folder}"

    def start(self) -> None:
        options = f"-c listen_addresses='' -c fsync=off -k {self.folder}"
        self._run(
            "pg_ctl",
            "-D",
            self.data,
            "-w",
            "-t",
            f"{WAIT:.0f}",
            "-l",
            self.folder / "log",
            "-o",
            options,
            "start",
        )

    def stop(self) -> None:
        """As a crash: nothing is finished."""
        self._run("pg_ctl", "-D", self.data, "-w", "-t", f"{WAIT:.0f}", "-m", "immediate", "stop")

    def close(self) -> None:
        if (self.data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.bin / program), *map(str, arguments)]
        with (self.folder / "said").open("a") as said:  # no pipe: the server would keep it open
            subprocess.run(command, check=True, stdout=said, stderr=said, user=self.user, cwd="/")


class Bucket:
    """SeaweedFS with one bucket and one key. `environment`: what a client needs."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fdtrace-s3-"))
        self.ports = free_ports(8)
        self.server: subprocess.Popen[bytes] | None = None
        credentials = [{"accessKey": KEY, "secretKey": SECRET}]
        identity = {
            "name": "tests",
            "credentials": credentials,
            "actions": ["Admin", "Read", "Write", "List"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers and the bucket is there."""
        program = weed()
        assert program is not None
        names = ("s3.port", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
                 "filer.port.grpc", "s3.port.grpc")  # fmt: skip
        ports = [f"-{name}={port}" for name, port in zip(names, self.ports, strict=True)]
        sockets = [f"-{name}.localSocket={self.folder / name}.sock" for name in ("filer", "s3")]
        options = ["-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={self.folder}", "-master.volumeSizeLimitMB=64",
                   "-volume.max=20", f"-s3.config={self.folder / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                   *ports, *sockets]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.server = subprocess.Popen([program, "server", *options], stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT
        while not self._answers():
            if time.monotonic() > deadline or self.server.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=5).close()
        except urllib.error.HTTPError:
            return True  # it wants a key
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Kill it."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            self.server = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in self.ports:  # a killed one leaves its sockets, some of which it always puts there
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink()


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody has now, all below 50000: SeaweedFS adds to some."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
