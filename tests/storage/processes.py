"""A metadata server and a storage server as real processes, and a blocking client that speaks to them without the file layer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from crc32c import crc32c

from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, storage_pb2
from emberfs.proto.ids import channel_of
from emberfs.proto.region import Slice
from emberfs.proto.rpc import CLUSTER, STORAGE, Method

CHUNK = 1 << 20
SECONDS = 60.0
LATER = (Status.STALE_CHAIN_VERSION, Status.STALE_ROUTING, Status.TARGET_OFFLINE, Status.FENCED, Status.MAYBE_COMMITTED)


class Server:
    """One start of a server; `within` begins the command. `report` is what it said when it was ready, or why it is not."""

    def __init__(self, module: str, log: Path, *options: str, within: Sequence[str] = ()) -> None:
        read_end, write_end = os.pipe()
        command = [*within, sys.executable, "-P", "-m", module, "--ready-fd", str(write_end), *options]
        with open(log, "ab") as stderr:
            self.process = subprocess.Popen(command, stderr=stderr, pass_fds=[write_end], cwd="/")
        os.close(write_end)
        self.log = log
        with os.fdopen(read_end) as pipe:
            self.report: dict[str, Any] = json.loads(pipe.readline() or '{"error": "no report"}')

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]


class Cluster:
    """Both servers over one folder; each can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"unix:{folder / 'meta.sock'}"
        self.storage_address = f"unix:{folder / 'storage.sock'}"
        self.started: list[Server] = []

    def start_meta(self) -> Server:
        return self._start("meta", "--listen", self.address, "--data", str(self.folder / "meta"))

    def start_storage(self, *options: str, data: str = "storage") -> Server:
        more = () if "--capacity" in options else ("--capacity", str(1 << 30))
        listen = ("--listen", self.storage_address, "--meta", self.address)
        return self._start("storage", *listen, "--data", str(self.folder / data), *more, *options)

    def _start(self, kind: str, *options: str) -> Server:
        server = Server(f"emberfs.{kind}.server", self.folder / f"{kind}.log", *options)
        self.started.append(server)
        return server

    def stop(self) -> None:
        for server in reversed(self.started):
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    # Not tmp_path: a test's name in it would push the sockets' paths over what the kernel takes.
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        cluster = Cluster(Path(folder))
        try:
            yield cluster
        finally:
            cluster.stop()


class Client:
    """Calls of the Storage service, tried again where the status table allows it."""

    def __init__(self, cluster: Cluster) -> None:
        self.env = BlockingEnvironment()
        self.cluster = cluster
        self.memory = self.env.pool.take(CHUNK)
        self.chains: dict[int, int] = {}  # chain -> version
        self.targets: list[int] = []
        self.learn()

    def learn(self) -> None:
        """Fetch the routing."""
        routing = self.call(self.cluster.address, CLUSTER.GetRouting, cluster_pb2.GetRoutingRequest())
        self.chains = {chain.id: chain.version for chain in routing.chains}
        self.targets = [chain.members[0].target for chain in routing.chains]

    def call(self, address: str, method: Method, request: Any, **bulk: Any) -> Any:
        return drive(self.env.call(Call(address, method, request, SECONDS, **bulk)))

    def storage(self, method: Method, request: Any, **bulk: Any) -> Any:
        return self.call(self.cluster.storage_address, method, request, **bulk)

    def write(self, data: bytes, index: int, sequence: int, *, inode: int = 5, chain: int = 1) -> Status:
        """One try; the newer chain version that a refusal brings is taken over."""
        self.memory.view[: len(data)] = data
        request = storage_pb2.WriteRequest(
            chain=[chain], chain_version=[self.chains[chain]], inode=[inode], index=[index], offset=[0],
            length=[len(data)], checksum=[crc32c(data)], channel=[channel_of(inode, index)], sequence=[sequence],
            truncate_version=[0], chunk_size=[CHUNK],
        )  # fmt: skip
        source = [Slice(self.memory.region, self.memory.offset, len(data))]
        reply = self.storage(STORAGE.Write, request, source=source)
        self.chains.update((newer.id, newer.version) for newer in reply.chains)
        return Status(reply.status[0])

    def write_surely(self, data: bytes, index: int, sequence: int, seconds: float = SECONDS) -> Status:
        """Until it is answered for good, under the same sequence."""
        end = time.monotonic() + seconds
        while True:
            try:
                status = self.write(data, index, sequence)
            except StatusError as failed:
                if not failed.retryable or time.monotonic() > end:
                    raise
            else:
                if status not in LATER:
                    return status
                if time.monotonic() > end:
                    return status

    def read(
        self, index: int, offset: int = 0, length: int = CHUNK, *, inode: int = 5, chain: int = 1
    ) -> tuple[Status, bytes]:
        request = storage_pb2.ReadRequest(
            chain=[chain],
            chain_version=[self.chains[chain]],
            inode=[inode],
            index=[index],
            offset=[offset],
            length=[length],
        )
        target = [Slice(self.memory.region, self.memory.offset, length)]
        reply = self.storage(STORAGE.Read, request, target=target)
        return Status(reply.status[0]), bytes(self.memory.view[: reply.returned[0]])

    def close(self) -> None:
        self.env.close()
