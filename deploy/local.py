"""A cluster on one machine: a metadata server and a storage server over one data directory, in the background.

    DIR/cluster.json            what clients need: addresses, cluster id, secret file; and the options of `up`
    DIR/secret                  the cluster secret, 0600
    DIR/meta/                   of the metadata server
    DIR/storage-1/target-1/     of the storage server, one folder a target
    DIR/run/*.sock, *.pid       sockets and locks of the running servers
    DIR/log/*.log               their logs

`start` is idempotent: it starts what does not run. One program at a time changes a data directory (a lock in DIR/run).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..proto.datadir import read_json, write_json
from ..proto.errors import Status, StatusError, error
from ..proto.settings import CLUSTER_FILE, data_url, default_data_dir
from .processes import ServerProcess

FORMAT = 1  # of cluster.json and the data directory's shape
SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, without the final NUL
SECRET_BYTES = 32
META = "meta"
STORAGE = "storage-1"
ROLES = (META, STORAGE)  # in the order in which they start
_OURS = {CLUSTER_FILE, "secret", "meta", "storage-1", "run", "log"}


@dataclass(frozen=True)
class ClusterOptions:
    """What `emberfs up` was asked for. They are kept in cluster.json: a later `up` without options uses the same."""

    port: int | None = None  # serve TCP on it too; 0: any free one; None: Unix sockets only
    host: str = "127.0.0.1"
    capacity: int | None = None  # bytes a target may hold; None: what the disk has
    direct: bool = False  # O_DIRECT
    grpc: str = ""  # host:port to serve gRPC for other tools on; empty: not at all
    tcp_only: bool = False  # storage listens on TCP alone, so that local clients take the way that remote ones take

    def __post_init__(self) -> None:
        if self.port is not None and not 0 <= self.port <= 65535:
            raise error(Status.INVALID, f"port {self.port}: must be from 0 to 65535")
        if self.tcp_only and self.port is None:
            raise error(Status.INVALID, "tcp_only needs a port (0: any free one)")
        if self.capacity is not None and self.capacity < 64 << 20:
            raise error(Status.INVALID, f"capacity of {self.capacity} bytes: a target needs at least 64 MiB")


class LocalCluster:
    """The servers of one data directory. Options that are None stay what they were when the cluster was made.

    Raises INVALID for options that cannot be, UNSUPPORTED for those that do not exist yet.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        port: int | None = None,
        host: str | None = None,
        capacity: int | None = None,
        direct: bool | None = None,
        grpc: str | None = None,
        tcp_only: bool | None = None,
        replicas: int = 1,
        log_level: str = "info",
    ) -> None:
        if replicas != 1:
            message = f"{replicas} replicas: a cluster keeps one copy of each chunk for now, replication over chains is not there yet"
            raise error(Status.UNSUPPORTED if replicas > 1 else Status.INVALID, message)
        self.data = Path(data or default_data_dir()).absolute()
        given: dict[str, Any] = {
            "port": port,
            "host": host,
            "capacity": capacity,
            "direct": direct,
            "grpc": grpc,
            "tcp_only": tcp_only,
        }
        self.asked = {name: value for name, value in given.items() if value is not None}
        ClusterOptions(**self.asked)  # refuse impossible ones at once
        self.log_level = log_level
        run, log = self.data / "run", self.data / "log"
        self.servers = {
            META: ServerProcess(META, "emberfs.meta.server", run / "meta.pid", log / "meta.log"),
            STORAGE: ServerProcess(STORAGE, "emberfs.storage.server", run / "storage-1.pid", log / "storage-1.log"),
        }

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make this the default cluster of a process."""
        return {"EMBERFS_DATA": str(self.data), "EMBERFS_URL": ""}  # an empty EMBERFS_URL counts as none

    @property
    def record(self) -> dict[str, Any]:
        """cluster.json. Raises NOT_FOUND where no cluster is, BAD_FORMAT when it is damaged or of another version."""
        try:
            record = read_json(self.data / CLUSTER_FILE)
        except FileNotFoundError as missing:
            message = f"no cluster in {self.data}: start one with 'emberfs up', or name its directory with --data or EMBERFS_DATA"
            raise error(Status.NOT_FOUND, message) from missing
        version = record.get("version")
        if version != FORMAT:
            made_by = record.get("software", "an unknown version")
            message = (
                f"{self.data} holds a cluster of format {version!r}, made by emberfs {made_by}; this is emberfs {__version__}, "
                f"which knows format {FORMAT}. Use that version, or another directory with --data"
            )
            raise error(Status.BAD_FORMAT, message)
        if not {"cluster", "addresses", *ROLES} <= {*record, *record.get("servers", {})}:
            raise error(Status.BAD_FORMAT, f"{self.data / CLUSTER_FILE} is damaged: 'emberfs up' writes it anew")
        return record

    @property
    def cluster_id(self) -> str:
        return str(self.record["cluster"])

    @property
    def url(self) -> str:
        """How programs on this machine name it: by its data directory."""
        return data_url(self.data)

    @property
    def tcp_url(self) -> str:
        """How other hosts name it. Raises INVALID when it serves Unix sockets only."""
        for address in self.record["addresses"]:
            if address.startswith("tcp:"):
                return f"ember://{address.removeprefix('tcp:')}/"
        raise error(Status.INVALID, f"the cluster in {self.data} serves Unix sockets only: start it with --port")

    # --- start and stop -----------------------------------------------------------------------------------------------------------

    def start(self) -> bool:
        """Start what does not run and wait until all serve; False if nothing was to do.

        Raises StatusError: PERMISSION_DENIED, NO_SPACE (the directory), BUSY_RESOURCE (port, other options), BAD_FORMAT (another
        version, foreign files), UNAVAILABLE (a server did not start; with its reason). What this call started is stopped again then.
        """
        self._prepare()
        with self._alone():
            found = self._existing()
            options = self._options(found)
            idle = [role for role in ROLES if self.servers[role].pid() is None]
            if found is not None and not idle:
                return False
            if META in idle:
                _check_port(options)
            started: list[str] = []
            try:
                self._start(idle, options, found, started)
            except BaseException:
                for role in reversed(started):
                    self.servers[role].stop()
                raise
        return True

    def _start(
        self, idle: list[str], options: ClusterOptions, found: dict[str, Any] | None, started: list[str]
    ) -> None:
        servers: dict[str, Any] = dict(found["servers"]) if found else {}
        sockets = self._socket_dir()
        for role in ROLES:
            if role not in idle:
                continue
            path = sockets / f"{role}.sock"
            path.unlink(missing_ok=True)  # of a killed server: nobody listens there, and bind would fail
            listen = [f"unix:{path}"] if role == META or not options.tcp_only else []
            if options.port is not None:
                listen.append(f"tcp:{options.host}:{options.port if role == META else 0}")
            report = self.servers[role].start(self._arguments(role, listen, options, servers))
            started.append(role)
            self._check_identity(role, report, found, servers)
            servers[role] = {"addresses": report["addresses"], "node": report["node"], "cluster": report["cluster"]}
        record = {
            "version": FORMAT,
            "software": __version__,
            "cluster": servers[META]["cluster"],
            "addresses": servers[META]["addresses"],
            "secret_file": str(self.data / "secret"),
            "options": asdict(options),
            "servers": servers,
        }
        write_json(self.data / CLUSTER_FILE, record)

    def _arguments(self, role: str, listen: list[str], options: ClusterOptions, servers: dict[str, Any]) -> list[str]:
        arguments = [
            "--data",
            str(self.data / role),
            "--secret-file",
            str(self.data / "secret"),
            "--log-level",
            self.log_level,
        ]
        for address in listen:
            arguments += ["--listen", address]
        if role == META and options.grpc:
            arguments += ["--grpc", options.grpc]
        if role == STORAGE:
            for address in servers[META]["addresses"]:
                arguments += ["--meta", address]
            arguments += ["--target", str(self.data / STORAGE / "target-1")]
            if options.capacity is not None:
                arguments += ["--capacity", str(options.capacity)]
            if options.direct:
                arguments.append("--direct")
        return arguments

    def _check_identity(
        self, role: str, report: dict[str, Any], found: dict[str, Any] | None, servers: dict[str, Any]
    ) -> None:
        expected = (found or {}).get("cluster") or servers.get(META, {}).get("cluster")
        if expected and report["cluster"] != expected:
            message = (
                f"{self.data / role} belongs to cluster {report['cluster']}, and {self.data / CLUSTER_FILE} to {expected}: "
                "two clusters' directories were mixed. Put the right one back, or start anew in an empty directory"
            )
            raise error(Status.WRONG_CLUSTER, message)

    def stop(self) -> list[str]:
        """Stop all servers, storage first (it says good-bye to the metadata server); the names of those that had to be killed.
        Pid files and sockets are removed, data stays."""
        if not (self.data / "run").is_dir():
            return []
        with self._alone():
            killed = [role for role in reversed(ROLES) if not self.servers[role].stop()]
            sockets = self._socket_dir()
            for role in ROLES:
                self.servers[role].pid_file.unlink(missing_ok=True)
                (sockets / f"{role}.sock").unlink(missing_ok=True)
            if sockets != self.data / "run":
                with contextlib.suppress(OSError):
                    sockets.rmdir()
        return killed

    def kill(self, role: str | None = None) -> None:
        """SIGKILL one server, or all of them. `start` brings back what was killed."""
        for name in [role] if role else ROLES:
            self.servers[name].stop(kill=True)

    def restart(self, role: str) -> None:
        """Stop one server cleanly and start it again."""
        self.servers[role].stop()
        self.start()

    def status(self) -> dict[str, Any]:
        """The servers as processes, whether they run or not: data, cluster, version, servers (name, pid, memory, addresses, log)."""
        record = self.record
        servers = [
            {
                "name": role,
                **server.usage(),
                "addresses": record["servers"][role]["addresses"],
                "log": str(server.log_file),
            }
            for role, server in self.servers.items()
        ]
        return {
            "data": str(self.data),
            "cluster": record["cluster"],
            "software": record["software"],
            "running": all(server["pid"] for server in servers),
            "servers": servers,
        }

    # --- the data directory -------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        try:
            if self.data.is_dir():
                self._refuse_foreign()
            for folder in (self.data, self.data / "run", self.data / "log"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.data, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            self._make_secret()
        except StatusError:
            raise
        except OSError as bad:
            status = {errno.ENOSPC: Status.NO_SPACE, errno.EROFS: Status.READ_ONLY}.get(
                bad.errno or 0, Status.PERMISSION_DENIED
            )
            why = bad.strerror or str(bad)
            message = (
                f"cannot keep a cluster in {self.data}: {why}. Choose another directory with --data or EMBERFS_DATA"
            )
            raise error(status, message) from bad

    def _refuse_foreign(self) -> None:
        names = {entry.name for entry in self.data.iterdir()}
        if names and not names & _OURS:
            message = f"{self.data} is not empty and holds no cluster ({min(names)!r} is there): choose another directory with --data"
            raise error(Status.BAD_FORMAT, message)

    def _make_secret(self) -> None:
        path = self.data / "secret"
        if path.exists():
            return
        temporary = path.with_suffix(f".{os.getpid()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(fd)
        with contextlib.suppress(FileExistsError):  # another `up` was faster: its secret is the cluster's
            os.link(temporary, path)
        temporary.unlink()

    def _existing(self) -> dict[str, Any] | None:
        """cluster.json, or None where there is none yet, or a damaged one (the servers know all that it says)."""
        try:
            return self.record
        except StatusError as bad:
            if bad.status is Status.NOT_FOUND or "damaged" in str(bad.strerror):
                return None
            raise

    def _options(self, found: dict[str, Any] | None) -> ClusterOptions:
        """Those asked for over those kept; a running cluster cannot change them."""
        kept = dict(found.get("options", {})) if found else {}
        options = ClusterOptions(**{**kept, **self.asked})
        running = [role for role in ROLES if self.servers[role].pid() is not None]
        if found and running and asdict(options) != asdict(ClusterOptions(**kept)):
            different = ", ".join(
                f"{name} {kept.get(name)}" for name, value in self.asked.items() if kept.get(name) != value
            )
            raise error(
                Status.BUSY_RESOURCE,
                f"the cluster in {self.data} runs with {different}: 'emberfs down' first, then 'up' again",
            )
        if running and not found:
            # cluster.json is lost while servers run: only they know where they listen, and they tell it when they start.
            for role in running:
                self.servers[role].stop()
        return options

    def _socket_dir(self) -> Path:
        """DIR/run, or where that is too long for a socket's name a short folder of this user's own."""
        run = self.data / "run"
        if max(len(os.fsencode(run / f"{role}.sock")) for role in ROLES) <= SOCKET_PATH_BYTES_MAX:
            return run
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        short = base / f"emberfs-{os.getuid()}-{hashlib.blake2b(os.fsencode(self.data), digest_size=6).hexdigest()}"
        short.mkdir(mode=0o700, exist_ok=True)
        seen = short.lstat()
        if seen.st_uid != os.getuid() or seen.st_mode & 0o077 or not short.is_dir():
            message = f"{short} belongs to somebody else, and {run} is too long for sockets: choose a shorter directory with --data"
            raise error(Status.PERMISSION_DENIED, message)
        return short

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One `up` or `down` at a time; a second one waits for the first."""
        fd = os.open(self.data / "run" / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _check_port(options: ClusterOptions) -> None:
    """Raise BUSY_RESOURCE when somebody listens there. The server would notice too, but could not say what to do."""
    if not options.port:
        return
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host.strip("[]"), options.port))
        except OSError as bad:
            if bad.errno == errno.EADDRINUSE:
                message = (
                    f"port {options.port} on {options.host} is taken by another program (see: ss -ltnp 'sport = :{options.port}'); "
                    "choose another with --port"
                )
                raise error(Status.BUSY_RESOURCE, message) from bad
            raise error(Status.INVALID, f"cannot listen on {options.host}:{options.port}: {bad.strerror}") from bad
