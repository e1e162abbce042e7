"""A PostgreSQL of our own, in a temporary folder, on a Unix socket: for benchmarks and for tests. It never syncs its files: what power loss
does to it is its own makers' business."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from ...proto.errors import Status, error

START_SECONDS = 30
STOP_SECONDS = 60
_FOLDER = "/tmp"  # noqa: S108 -- another account must be able to come here, and a socket's path be short; mkdtemp makes a name of its own
ACCOUNTS = ("postgres", "nobody")  # it refuses to run as root
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "logging_collector": "off",
    "autovacuum_naptime": "5s",
}


def find_programs() -> Path | None:
    """The folder of the newest server that is installed; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    on_path = shutil.which("initdb")
    if found:
        return found[-1].parent
    return Path(on_path).resolve().parent if on_path else None


class PostgresServer:
    """Runs until `close`. Raises UNAVAILABLE when it does not start."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="emberfs-pg-", dir=_FOLDER))
        self._databases = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, object] = {}
        if os.geteuid() == 0:
            account = next(pwd.getpwnam(name) for name in ACCOUNTS if _exists(name))
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._run("initdb", "-D", "data", "-U", "emberfs", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()

    def database(self) -> str:
        """The URL of a new, empty schema: as good as a database of its own, and a hundred times as cheap."""
        import psycopg

        self._databases += 1
        name = f"t{self._databases}"
        url = f"postgresql:///postgres?host={self.folder}&user=emberfs"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{url}&options=-csearch_path%3D{name}"

    def start(self) -> None:
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [self._programs / "postgres", "-D", "data", "-k", str(self.folder), *options],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **self._as,  # type: ignore[call-overload]
        )
        log.close()
        self._run("pg_isready", "-h", str(self.folder), "-t", str(START_SECONDS), attempts=START_SECONDS * 20)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: disconnect everybody, and end; SIGQUIT: at once, as a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(STOP_SECONDS)

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str, attempts: int = 1) -> None:
        for _ in range(attempts):
            if self._process is not None and self._process.poll() is not None:
                raise error(Status.UNAVAILABLE, f"PostgreSQL ended: {(self.folder / 'log').read_text()}")
            done = subprocess.run(
                [self._programs / program, *arguments],
                cwd=self.folder,
                check=False,
                capture_output=True,
                text=True,
                **self._as,  # type: ignore[call-overload]
            )
            if done.returncode == 0:
                return
            if attempts > 1:
                signal.sigtimedwait([], 0.05)
        raise error(Status.UNAVAILABLE, f"{program}: {done.stdout}{done.stderr}")


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
