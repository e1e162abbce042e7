"""SGLang's own backend for 3FS, with our `hf3fs_fuse` where it looks for 3FS's: files on a mount, its metadata server beside it."""

from __future__ import annotations

import atexit
import json
import multiprocessing.shared_memory  # noqa: F401  # the engine's client uses it without importing it
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from emberfs.kvcache.adapters import hf3fs

from .parts import attribute
from .sglang_host import HostPool, attach

CLIENTS = 4  # each opens the file, and has two rings and two spans of shared memory
ENTRIES = 8  # of a ring, as the engine's default
SERVER = """
from emberfs.tests.kvcache.engines import sglang_host
from sglang.srt.mem_cache.storage.hf3fs.mini_3fs_metadata_server import run_metadata_server
import sys
run_metadata_server("127.0.0.1", int(sys.argv[1]))
"""


def _pieces(memory: torch.Tensor, tensors: list[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tensors, and where each is in the shared memory: one behind the other."""
    start = 0
    for tensor in tensors:
        yield tensor, memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        start += tensor.nbytes


def _read(memory: torch.Tensor, tensors: list[torch.Tensor]) -> None:
    for tensor, piece in _pieces(memory, tensors):
        tensor.copy_(piece)


def _write(tensors: list[torch.Tensor], memory: torch.Tensor) -> None:
    for tensor, piece in _pieces(memory, tensors):
        piece.copy_(tensor)


@contextmanager
def metadata_server() -> Iterator[str]:
    """The engine's, in a process of its own; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:  # uvicorn says when it listens
            if b"running on" in line.lower():
                break
        else:
            raise AssertionError("the metadata server did not start")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=10):
            yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate()


@contextmanager
def hf3fs_backend(folder: Path, pool: HostPool, url: str, pages: int) -> Iterator[Any]:
    """`HiCacheHF3FS` from a configuration file, with its clients for 3FS's rings. It takes signals and an exit handler for itself; both are
    given back here."""
    if hf3fs.folder() not in sys.path:
        sys.path.insert(0, hf3fs.folder())
    from sglang.srt.utils import cpp_extension_loader as loader

    compiled = loader.load_extension_with_recovery

    def load(name: str, **how: Any) -> Any:
        """Its copy helper in Python: the C++ takes longer to compile than everything here."""
        return (
            SimpleNamespace(read_shm=_read, write_shm=_write) if name == "hf3fs_utils" else compiled(name=name, **how)
        )

    file = folder / "config.json"
    file.write_text(
        json.dumps({
            "file_path_prefix": str(folder / "hicache"), "file_size": pages * pool.piece_bytes * pool.page_size,
            "numjobs": CLIENTS, "entries": ENTRIES, "metadata_server_url": url,
        })
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)}
    os.environ["SGLANG_HICACHE_HF3FS_CONFIG_PATH"] = str(file)
    try:
        with attribute(loader, "load_extension_with_recovery", load):
            backend = attach("hf3fs", pool)
        try:
            yield backend
        finally:
            atexit.unregister(backend.close)
            for client in backend.clients:  # close() of the backend ends with the first that is closed already
                with suppress(OSError, AttributeError):
                    client.close()
            backend.executor.shutdown()
    finally:
        del os.environ["SGLANG_HICACHE_HF3FS_CONFIG_PATH"]
        for number, handler in handlers.items():
            signal.signal(number, handler)
