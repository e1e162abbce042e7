"""Resident memory: of a metadata server with many files, a storage server with many chunks, an idle client; and start-up times."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from .measure import MIB, rate, row, temporary_cluster

FILES, FILES_QUICK = 1_000_000, 50_000
CHUNKS, CHUNKS_QUICK = 100_000, 5_000
BATCH = 1000
CHUNK_FILE_CHUNKS = 1000  # chunks of 64 KiB in one file; one written byte makes a chunk
AIM_META_MB, AIM_STORAGE_MB, AIM_CLIENT_MB = 400, 200, 80
AIM_IMPORT_MS, AIM_HELP_MS = 100, 300

_CLIENT = """
import emberfs, sys
client = emberfs.connect(sys.argv[1])
client.stat("/")
print(int(open("/proc/self/statm").read().split()[1]) * 4096)
"""


def run(quick: bool = False) -> dict[str, Any]:
    """Measure; takes some minutes, or half a minute with `quick` (and then with fewer files and chunks)."""
    files, chunks = (FILES_QUICK, CHUNKS_QUICK) if quick else (FILES, CHUNKS)
    with temporary_cluster() as (cluster, _):
        from ...client.blocking import connect

        with connect(cluster.url) as client:
            for start in range(0, files, BATCH):
                if start % (100 * BATCH) == 0:
                    client.mkdir(f"/d{start // (100 * BATCH)}")
                folder = f"/d{start // (100 * BATCH)}"
                client.create_many([f"{folder}/file-{i}" for i in range(start, min(files, start + BATCH))])
            client.mkdir("/chunks")
            for number in range(chunks // CHUNK_FILE_CHUNKS):
                with client.open(f"/chunks/{number}", "wb", chunk_size=64 << 10) as file:
                    for i in range(CHUNK_FILE_CHUNKS):
                        file.pwrite(b"x" * 4096, i * (64 << 10))
        used = {server["name"]: server["resident_bytes"] for server in cluster.status()["servers"]}
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CLIENT, cluster.url], capture_output=True, text=True, check=True
        )
    exact = not quick
    return {
        "rows": [
            _megabytes(f"metadata server with {files:,} files", used["meta"], AIM_META_MB if exact else None),
            _megabytes(f"storage server with {chunks:,} chunks", used["storage-1"], AIM_STORAGE_MB if exact else None),
            _megabytes("idle client", int(done.stdout), AIM_CLIENT_MB),
            row(
                "import emberfs",
                _start_ms("-c", "import emberfs") - _start_ms("-c", ""),
                "ms",
                aim=AIM_IMPORT_MS,
                least=False,
            ),
            row("emberfs --help", _start_ms("-m", "emberfs", "--help"), "ms", aim=AIM_HELP_MS, least=False),
        ]
    }


def _megabytes(what: str, size: int, aim: float | None) -> dict[str, Any]:
    return row(what, size / MIB, "MiB resident", aim=aim, least=False)


def _start_ms(*arguments: str) -> float:
    """The best of five runs of the interpreter."""
    command = [sys.executable, "-P", *arguments]
    return min(
        1000 / rate(1, lambda: subprocess.run(command, check=True, capture_output=True, cwd="/")) for _ in range(5)
    )
