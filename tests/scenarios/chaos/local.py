"""A cluster of one machine as chaos sees it."""

from __future__ import annotations

from pathlib import Path

from emberfs.deploy.local import LocalCluster


class Local:
    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.nodes = cluster.nodes
        self.url = cluster.url
        self.cluster_id = cluster.cluster_id

    def pid_of(self, role: str) -> int:
        pid = self._cluster.servers[role].pid()
        assert pid is not None, f"{role} does not run"
        return pid

    def kill(self, role: str) -> None:
        self._cluster.kill(role)

    def start(self, role: str) -> None:
        self._cluster.start(role)

    def target_folders(self) -> list[Path]:
        return sorted(self._cluster.data.glob("storage-*/target-*"))

    def stop(self) -> None:
        left = self._cluster.stop()
        assert not left, f"killed, as they did not stop when they were asked to: {left}"
