"""A cluster on one machine: metadata servers and storage servers over one data directory, in the background.

    DIR/cluster.json            what clients need: addresses, cluster id, secret file; and the options of `up`
    DIR/secret                  the cluster secret, 0600
    DIR/meta/, DIR/meta-N/      of the metadata servers: one, or several over a store that they share
    DIR/storage-N/target-M/     of the storage servers (the nodes), one folder a target
    DIR/storage-N/kv-M/         the same, of the targets for KV blocks
    DIR/run/*.sock, *.pid       sockets and locks of the running servers
    DIR/log/*.log               their logs

`start` is idempotent: it starts what does not run. One program at a time changes a data directory (a lock in DIR/run).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import __version__
from ..proto.blocks import TABLE_OF_BLOCKS
from ..proto.datadir import read_json, write_json
from ..proto.errors import Status, StatusError, error
from ..proto.settings import CLUSTER_FILE, KV_CAPACITY_PART, data_url, default_data_dir, default_kv_memory, not_yours
from . import mounts
from .administration import Administration
from .chains import make_first_chains
from .directory import META_NAME, alone, meta_names, next_names, prepare, require_metadata, socket_dir, storage_names
from .options import CAPACITY_BYTES_MIN, DISK_PART, ClusterOptions, differences, merged
from .processes import ServerProcess

FORMAT = 1  # of cluster.json and the data directory's shape
META = "meta"
STORAGE = "storage-1"  # the first storage node
REMOVED_SUFFIX = ".removed"  # of a server's directory that is being deleted
CAPACITY_UNIT = 4096  # bytes; a target's capacity is a multiple


class LocalCluster:
    """The servers of one data directory. Options that are None stay what they were when the cluster was made. `bound`: servers that are
    started here end with this program, however it ends. `metrics`: and tell Prometheus what they count (`metrics_socket`).

    Raises INVALID for options that cannot be.
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
        nodes: int | None = None,
        replicas: int | None = None,
        targets: int | None = None,
        kv_capacity: int | None = None,
        kv_replicas: int | None = None,
        kv_memory: int | None = None,
        trash: int | None = None,
        metas: int | None = None,
        kv: str | None = None,
        log_level: str = "info",
        bound: bool = False,
        metrics: bool = False,
    ) -> None:
        self.data = Path(data or default_data_dir()).absolute()
        given: dict[str, Any] = {
            "port": port,
            "host": host,
            "capacity": capacity,
            "direct": direct,
            "grpc": grpc,
            "tcp_only": tcp_only,
            "nodes": nodes,
            "replicas": replicas,
            "targets": targets,
            "kv_capacity": kv_capacity,
            "kv_replicas": kv_replicas,
            "kv_memory": kv_memory,
            "trash": trash,
            "metas": metas,
            "kv": kv,
        }
        self.asked = {name: value for name, value in given.items() if value is not None}
        if 0 in (nodes, targets):
            raise error(Status.INVALID, "a cluster has at least one node, and a node at least one target")
        ClusterOptions(**self.asked)  # refuse impossible ones at once
        self.log_level = log_level
        self._bound = bound
        self._metrics = metrics
        self.servers: dict[str, ServerProcess] = {}
        if self.data.is_dir() and not os.access(self.data, os.R_OK | os.X_OK):
            raise not_yours(self.data)
        self._find_servers(
            next_names(storage_names(self.data), 1)
        )  # not by cluster.json, which may be of another version

    def _find_servers(self, storage: Sequence[str], metas: int = 1) -> None:
        """These are the storage servers; others may have come or gone by another program's hand."""
        known, self.servers = self.servers, {}
        for role in (*meta_names(self.data, metas), *storage):
            module = f"emberfs.{'meta' if _is_meta(role) else 'storage'}.server"
            pid_file, log_file = self.data / "run" / f"{role}.pid", self.data / "log" / f"{role}.log"
            self.servers[role] = known.get(role) or ServerProcess(role, module, pid_file, log_file, self._bound)

    def _look(self) -> None:
        """Find the servers that there are now."""
        found = None
        with contextlib.suppress(StatusError):  # of another version: those that have a directory are found
            found = self._existing()
        self._find_servers(next_names(self._storage(found), 1), _metas(found))

    def _storage(self, found: dict[str, Any] | None) -> set[str]:
        """Storage servers that there are, by their directories and by cluster.json."""
        return {
            *storage_names(self.data),
            *(name for name in (found["servers"] if found else ()) if not _is_meta(name)),
        }

    @property
    def roles(self) -> list[str]:
        """The servers' names, in the order in which they start."""
        return list(self.servers)

    @property
    def nodes(self) -> list[str]:
        """The storage servers' names."""
        return [role for role in self.servers if not _is_meta(role)]

    @property
    def metas(self) -> list[str]:
        """The metadata servers' names."""
        return [role for role in self.servers if _is_meta(role)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make this the default cluster of a process."""
        return {"EMBERFS_DATA": str(self.data), "EMBERFS_URL": ""}  # an empty EMBERFS_URL counts as none

    @property
    def record(self) -> dict[str, Any]:
        """cluster.json. Raises NOT_FOUND where no cluster is, BAD_FORMAT when it is damaged or of another version."""
        try:
            record = read_json(self.data / CLUSTER_FILE, cure="'emberfs up' writes it anew")
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
        if not {"cluster", "addresses", META} <= {*record, *record.get("servers", {})}:
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

    def start(self, *only: str) -> bool:
        """Start what does not run (of these servers, if any are named) and wait until all serve; False if nothing was to do.

        Raises StatusError: PERMISSION_DENIED, NO_SPACE (the directory), BUSY_RESOURCE (port, other options), BAD_FORMAT (another
        version, foreign files), INVALID (options that the cluster cannot take over), UNAVAILABLE (a server did not start; with its
        reason). What this call started is stopped again then.
        """
        prepare(self.data)
        with alone(self.data):
            self._remove_forgotten()
            found = self._existing()
            options = self._options(found)
            idle = [role for role in only or self.roles if self.servers[role].pid() is None]
            if found is not None and not idle and self._has_chains(found, options):
                return False
            if META in idle:
                _check_port(options)
                if not options.kv:
                    require_metadata(self.data, found is not None)
            started: list[str] = []
            try:
                self._start(idle, options, found, started)
            except BaseException:
                for role in reversed(started):
                    self.servers[role].stop()
                raise
        return True

    @staticmethod
    def _has_chains(found: dict[str, Any], options: ClusterOptions) -> bool:
        """Whether the chains that do not come by themselves, with the targets, have been made."""
        files = not options.replicated or bool(found.get("chains"))
        return files and (not options.kv_replicated or bool(found.get("kv_chains")))

    def _start(
        self, idle: list[str], options: ClusterOptions, found: dict[str, Any] | None, started: list[str]
    ) -> None:
        lost = found is None and (self.data / META).exists()  # cluster.json is gone, and a cluster is there
        servers: dict[str, Any] = dict(found["servers"]) if found else {}
        record: dict[str, Any] = {
            "version": FORMAT,
            "software": __version__,
            "secret_file": str(self.data / "secret"),
            "options": asdict(options),
            "target_capacity": self._capacity(options, found),
            "chains": bool(found and found.get("chains")),
            "kv_chains": bool(found and found.get("kv_chains")),
            "mounts": found.get("mounts", []) if found else [],  # where `up` mounts it too
            "servers": servers,
        }
        record["kv_target_capacity"] = self._kv_capacity(options, record["target_capacity"], found)
        # The metadata servers first, as the others register there; each group at once, as each server spends its start with itself.
        for group in (self.metas, self.nodes):
            waiting = [role for role in group if role in idle]
            for role in waiting:
                self._launch(role, options, record)
                started.append(role)
            for role in waiting:
                report = self.servers[role].wait()
                self._check_identity(role, report, found, servers)
                known = servers.get(role, {})
                servers[role] = known | {name: report[name] for name in ("addresses", "node", "cluster")}
        record |= {"cluster": servers[META]["cluster"], "addresses": _addresses(servers)}
        write_json(self.data / CLUSTER_FILE, record)
        if lost or not self._has_chains(record, options):
            with Administration(self.url) as administration:
                replicas = make_first_chains(administration, options.replicas)
                if options.kv_replicated:
                    make_first_chains(administration, options.kv_replicas, TABLE_OF_BLOCKS)
            record |= {"chains": True, "kv_chains": options.kv_replicated}
            record["options"] = asdict(replace(options, nodes=len(self.nodes), replicas=replicas))
            write_json(self.data / CLUSTER_FILE, record)

    def forget(self, role: str) -> None:
        """A storage server that the cluster does without from now on: its process ends, its directory is deleted."""
        with alone(self.data):
            record = self.record
            server = self.servers.pop(role)
            server.stop()
            for left in (server.pid_file, socket_dir(self.data, self.roles) / f"{role}.sock"):
                left.unlink(missing_ok=True)
            # In one step: what takes a while may be interrupted, and a directory that is there belongs to a server that is to be started.
            self._remove_forgotten()
            removed = self.data / f"{role}{REMOVED_SUFFIX}"
            with contextlib.suppress(FileNotFoundError):
                (self.data / role).rename(removed)
            record["servers"].pop(role, None)
            write_json(self.data / CLUSTER_FILE, record)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(removed)

    def _remove_forgotten(self) -> None:
        """The directories of servers that the cluster does without, as far as they can be deleted: it serves with what is left, too."""
        for left in self.data.glob(f"storage-*{REMOVED_SUFFIX}"):
            shutil.rmtree(left, ignore_errors=True)

    def _launch(self, role: str, options: ClusterOptions, record: dict[str, Any]) -> None:
        path = socket_dir(self.data, self.roles) / f"{role}.sock"
        path.unlink(missing_ok=True)  # of a killed server: nobody listens there, and bind would fail
        listen = [f"unix:{path}"] if _is_meta(role) or not options.tcp_only else []
        if options.port is not None:
            listen.append(f"tcp:{options.host}:{options.port if role == META else 0}")
        self.servers[role].launch(self._arguments(role, listen, options, record))

    def _arguments(self, role: str, listen: list[str], options: ClusterOptions, record: dict[str, Any]) -> list[str]:
        arguments = [
            "--data",
            str(self.data / role),
            "--secret-file",
            str(self.data / "secret"),
            "--log-level",
            self.log_level,
            "--name",
            role,
        ]
        if self._metrics:
            arguments += ["--metrics", f"unix:{self.metrics_socket(role)}"]
        for address in listen:
            arguments += ["--listen", address]
        if _is_meta(role):
            if options.kv:
                arguments += ["--kv", options.kv]
            if options.trash is not None:
                arguments += ["--trash", str(options.trash)]
            return [*arguments, "--grpc", options.grpc] if options.grpc and role == META else arguments
        for address in _addresses(record["servers"]):
            arguments += ["--meta", address]
        for path in self._targets(role, options, known=role in record["servers"]):
            arguments += ["--target", str(path)]
        if record["target_capacity"]:
            arguments += ["--capacity", str(record["target_capacity"])]
        arguments += self._kv_arguments(role, options, record)
        if options.direct:
            arguments.append("--direct")
        if options.replicated:
            arguments.append("--spare")
        return arguments

    def _kv_arguments(self, role: str, options: ClusterOptions, record: dict[str, Any]) -> list[str]:
        """What a storage server is told of targets for KV blocks. A cluster from before there were any gets them with its next start."""
        folder = self.data / role
        begin = [folder / f"kv-{number + 1}" for number in range(options.kv_target_count)]
        there = sorted(folder.glob("kv-*"))
        arguments = [word for path in there or begin for word in ("--kv-target", str(path))]
        if not arguments:
            return []
        if record["kv_target_capacity"]:
            arguments += ["--kv-capacity", str(record["kv_target_capacity"])]
        memory = default_kv_memory() if options.kv_memory is None else options.kv_memory
        arguments += ["--kv-memory", str(memory // len(self.nodes))]
        return [*arguments, "--kv-spare"] if options.kv_replicated else arguments

    def metrics_socket(self, role: str) -> Path:
        """Where a server that was started with `metrics` answers GET /metrics."""
        return socket_dir(self.data, self.roles) / f"{role}.metrics"

    def _targets(self, role: str, options: ClusterOptions, *, known: bool) -> list[Path]:
        """The targets of a storage server: those that it has, as targets come and go with rebalancing; at first the number asked for."""
        there = sorted(self.data.joinpath(role).glob("target-*"))
        begin = [self.data / role / f"target-{number + 1}" for number in range(options.target_count)]
        return there if known and there else sorted({*there, *begin})

    def _capacity(self, options: ClusterOptions, found: dict[str, Any] | None) -> int:
        """Bytes of each target, 0 to leave it to the server: what was asked for, what it was, or each one's part of this disk."""
        if options.capacity is not None:
            return options.capacity
        targets = options.node_count * options.target_count
        if found is not None or targets == 1:
            return int((found or {}).get("target_capacity", 0))
        return int(shutil.disk_usage(self.data).free * DISK_PART / targets) // CAPACITY_UNIT * CAPACITY_UNIT

    @staticmethod
    def _kv_capacity(options: ClusterOptions, capacity: int, found: dict[str, Any] | None) -> int:
        """The same of each target for KV blocks, where a target for files has `capacity`: all of a node together have a quarter."""
        if options.kv_capacity is not None:
            return options.kv_capacity
        if found is not None and "kv_target_capacity" in found:
            return int(found["kv_target_capacity"])
        each = capacity * options.target_count * KV_CAPACITY_PART / max(1, options.kv_target_count)
        return max(CAPACITY_BYTES_MIN, int(each)) // CAPACITY_UNIT * CAPACITY_UNIT if capacity else 0

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
        What is mounted of the cluster is unmounted before. Pid files and sockets are removed, data stays."""
        if not (self.data / "run").is_dir():
            return []
        mounts.end_all(self.url)
        with alone(self.data):
            self._look()
            nodes = self.nodes
            for role in nodes:  # all at once: each takes a checkpoint
                self.servers[role].terminate()
            killed = [role for role in [*nodes, *self.metas] if not self.servers[role].stop()]
            sockets = socket_dir(self.data, self.roles)
            for role in self.roles:
                self.servers[role].pid_file.unlink(missing_ok=True)
                (sockets / f"{role}.sock").unlink(missing_ok=True)
                self.metrics_socket(role).unlink(missing_ok=True)
            if sockets != self.data / "run":
                with contextlib.suppress(OSError):
                    sockets.rmdir()
        return killed

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """The content of cluster.json to be changed in a block, at the end of which it is written. Raises as `record`."""
        with alone(self.data):
            record = self.record
            yield record
            write_json(self.data / CLUSTER_FILE, record)

    def kill(self, role: str | None = None) -> None:
        """SIGKILL one server, or all of them. `start` brings back what was killed."""
        self._look()
        for name in [role] if role else self.roles:
            self.servers[name].stop(kill=True)

    def restart(self, role: str) -> None:
        """Stop one server cleanly and start it again."""
        self.servers[role].stop()
        self.start()

    def status(self) -> dict[str, Any]:
        """The servers as processes, whether they run or not: data, cluster, version, servers (name, pid, memory, addresses, log)."""
        record = self.record
        self._look()
        servers = [
            {
                "name": role,
                **server.usage(),
                "addresses": record["servers"].get(role, {}).get("addresses", []),
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

    # --- what lies there ----------------------------------------------------------------------------------------------------------

    def _existing(self) -> dict[str, Any] | None:
        """cluster.json, or None where there is none yet, or a damaged one (the servers know all that it says)."""
        try:
            return self.record
        except StatusError as bad:
            if bad.status is Status.NOT_FOUND or "damaged" in str(bad.strerror):
                return None
            raise

    def _options(self, found: dict[str, Any] | None) -> ClusterOptions:
        """Those asked for over those kept, and the servers that they mean; a running cluster can only grow."""
        kept = found.get("options", {}) if found else None
        before = self._storage(found)
        options = merged(kept, len(before), self.asked)
        self._find_servers(next_names(before, max(len(before), options.node_count)), options.metas)
        running = [role for role in self.roles if self.servers[role].pid() is not None]
        if found and running and (different := differences(found.get("options", {}), self.asked)):
            raise error(
                Status.BUSY_RESOURCE,
                f"the cluster in {self.data} runs with {different}: 'emberfs down' first, then 'up' again",
            )
        if running and not found:
            # cluster.json is lost while servers run: only they know where they listen, and they tell it when they start.
            for role in running:
                self.servers[role].stop()
        return options


def _is_meta(role: str) -> bool:
    return META_NAME.fullmatch(role) is not None


def _metas(found: dict[str, Any] | None) -> int:
    """How many metadata servers a cluster.json asks for."""
    return int(found.get("options", {}).get("metas", 1)) if found else 1


def _addresses(servers: dict[str, Any]) -> list[str]:
    """Of all metadata servers."""
    return [address for role in servers if _is_meta(role) for address in servers[role]["addresses"]]


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
