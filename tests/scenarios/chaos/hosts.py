"""A cluster over several hosts (network.py): one storage process on each of three, the metadata server and the clients on others. TCP
with the cluster secret, as between real machines."""

from __future__ import annotations

import os
import secrets
import signal
from pathlib import Path

from emberfs.deploy.administration import Administration
from emberfs.deploy.chains import make_first_chains
from emberfs.proto.hello import NOBODY
from emberfs.proto.settings import time_scale
from emberfs.tests.storage.processes import Server

from .aftermath import REPLICAS
from .network import Network

META, CLIENT, NODES = "meta", "client", ["storage-1", "storage-2", "storage-3"]
PORT = 9440
CAPACITY = 1 << 30  # bytes of a target
STOP_S = 60.0


class HostsCluster:
    """Its servers are called like the hosts that they run on. The test's own calls come from the host `operator`, which no cut touches."""

    OPERATOR = "operator"

    def __init__(self, network: Network, folder: Path, targets: int) -> None:
        self.network = network
        self.nodes = list(NODES)
        self.folder = folder
        self.secret = folder / "secret"
        self.secret.write_text(secrets.token_hex(32))
        self.secret.chmod(0o600)
        self._targets = targets
        self._servers: dict[str, Server] = {}

    @staticmethod
    def hosts() -> list[str]:
        return [META, *NODES, CLIENT, HostsCluster.OPERATOR]

    @property
    def url(self) -> str:
        """Needs EMBERFS_SECRET_FILE."""
        return f"ember://{self.network.address(META)}:{PORT}/"

    @property
    def cluster_id(self) -> str:
        return str(self._servers[META].report["cluster"])

    def target_folders(self) -> list[Path]:
        return sorted(self.folder.glob("storage-*/target-*"))

    def begin(self) -> None:
        """Start everything, and make the first chains."""
        (self.folder / META).mkdir()
        os.chown(
            self.folder / META, NOBODY, NOBODY
        )  # the root directory's owner: what root is to servers on other hosts
        for role in (META, *self.nodes):
            self.start(role)
        with self.network.inside(self.OPERATOR), Administration(self.url) as administration:
            make_first_chains(administration, REPLICAS)

    def start(self, role: str) -> None:
        """Raises AssertionError with the server's own words where it does not start."""
        data = self.folder / role
        options = ["--data", str(data), "--secret-file", str(self.secret), "--name", role]
        options += ["--listen", f"tcp:{self.network.address(role)}:{PORT}"]
        if role != META:
            options += ["--meta", f"tcp:{self.network.address(META)}:{PORT}", "--capacity", str(CAPACITY), "--spare"]
            for number in range(self._targets):
                options += ["--target", str(data / f"target-{number + 1}")]
        module = f"emberfs.{'meta' if role == META else 'storage'}.server"
        server = Server(module, self.folder / f"{role}.log", *options, within=self.network.within(role))
        self._servers[role] = server
        assert "addresses" in server.report, server.report

    def pid_of(self, role: str) -> int:
        return self._servers[role].process.pid

    def kill(self, role: str) -> None:
        self._servers[role].end(signal.SIGKILL)

    def stop(self) -> None:
        """All of them, cleanly."""
        for role in (*self.nodes, META):
            self._servers[role].process.terminate()
        codes = {role: server.process.wait(STOP_S * max(1.0, time_scale())) for role, server in self._servers.items()}
        assert not any(codes.values()), codes

    def abandon(self) -> None:
        """However the test ends, no server is left."""
        for server in self._servers.values():
            if server.process.poll() is None:
                server.end(signal.SIGKILL)
