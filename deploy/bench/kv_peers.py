"""Peers of the KV cache in memory: Redis through pipelined redis-py, memcached through a client that moves values with sendmsg and
recvmsg_into. Each on a Unix socket of its own, started for the benchmark and stopped after it."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...proto.errors import Status, error

START_SECONDS_MAX = 10.0
LOOK_SECONDS = 0.02
ANSWER_SECONDS_MAX = 2  # a value that is not there makes the reply shorter than what is waited for
PARTS_MAX = 1000  # of one system call; the kernel takes 1,024
_LINE = b"\r\n"


class Peer(Protocol):
    name: str

    def put(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None: ...

    def get(self, keys: Sequence[bytes], places: Sequence[memoryview]) -> None: ...


@contextlib.contextmanager
def redis(folder: Path, mib: int) -> Iterator[Peer]:
    """Redis, nothing on disk. Raises UNSUPPORTED where the server or redis-py is not installed."""
    program = _program("redis-server")
    try:
        library = importlib.import_module("redis")
    except ImportError:
        raise error(Status.UNSUPPORTED, "redis-py is not installed: pip install redis") from None
    path = folder / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    command += ["--dir", str(folder), "--maxmemory", f"{mib}mb", "--maxmemory-policy", "allkeys-lru"]
    with _running(command, path):
        connection = library.Redis(unix_socket_path=str(path))
        try:
            yield _Redis(
                connection, f"Redis {connection.info('server')['redis_version']}, redis-py {library.__version__}"
            )
        finally:
            connection.close()


class _Redis:
    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self.name = name

    def put(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        pipe = self._connection.pipeline(transaction=False)
        for key, value in zip(keys, values, strict=True):
            pipe.set(key, value)
        pipe.execute()

    def get(self, keys: Sequence[bytes], places: Sequence[memoryview]) -> None:
        """redis-py makes a `bytes` of each value; it is not copied to its place, which would only make it slower."""
        pipe = self._connection.pipeline(transaction=False)
        for key in keys:
            pipe.get(key)
        for value, place in zip(pipe.execute(), places, strict=True):
            if value is None or len(value) != len(place):
                raise error(Status.LOST_DATA, "a value is not there")


@contextlib.contextmanager
def memcached(folder: Path, mib: int) -> Iterator[Peer]:
    """memcached. Raises UNSUPPORTED where it is not installed."""
    program = _program("memcached")
    path = folder / "memcached.sock"
    command = [program, "-s", str(path), "-m", str(mib), "-I", "32m", "-u", "root"]
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    with _running(command, path), socket.socket(socket.AF_UNIX) as end:
        end.connect(str(path))
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_SECONDS_MAX, 0))
        yield _Memcached(end, f"memcached {version}, sendmsg and recvmsg_into")


class _Memcached:
    """The text protocol; as the lengths of all values are known, so is the form of the reply, and each byte is received in its place."""

    def __init__(self, end: socket.socket, name: str) -> None:
        self._end = end
        self.name = name

    def put(self, keys: Sequence[bytes], values: Sequence[memoryview]) -> None:
        parts: list[Any] = []
        for key, value in zip(keys, values, strict=True):
            parts += (b"set %b 0 0 %d\r\n" % (key.hex().encode(), len(value)), value, _LINE)
        _send_all(self._end, parts)
        reply = bytearray(8 * len(keys))
        _receive_all(self._end, [memoryview(reply)])
        if reply != b"STORED\r\n" * len(keys):
            raise error(Status.LOST_DATA, f"memcached did not store everything: {bytes(reply[:40])!r}")

    def get(self, keys: Sequence[bytes], places: Sequence[memoryview]) -> None:
        names = [key.hex().encode() for key in keys]
        self._end.sendall(b"get " + b" ".join(names) + _LINE)
        heads = [b"VALUE %b 0 %d\r\n" % (name, len(place)) for name, place in zip(names, places, strict=True)]
        received = [bytearray(len(head) + (2 if i else 0)) for i, head in enumerate(heads)]
        end = bytearray(7)
        parts: list[memoryview] = []
        for head, place in zip(received, places, strict=True):
            parts += (memoryview(head), place)
        _receive_all(self._end, [*parts, memoryview(end)])
        expected = [(_LINE if i else b"") + head for i, head in enumerate(heads)]
        if received != expected or end != b"\r\nEND\r\n":
            raise error(Status.LOST_DATA, "a value is not there")


def _send_all(end: socket.socket, parts: list[Any]) -> None:
    views = [memoryview(part) for part in parts]
    while views:
        views = _after(views, end.sendmsg(views[:PARTS_MAX]))


def _receive_all(end: socket.socket, views: list[memoryview]) -> None:
    while views:
        try:
            count = end.recvmsg_into(views[:PARTS_MAX])[0]
        except BlockingIOError:
            raise error(Status.LOST_DATA, "a value is not there: the reply is shorter than that") from None
        if not count:
            raise error(Status.UNAVAILABLE, "the peer closed the connection")
        views = _after(views, count)


def _after(views: list[memoryview], count: int) -> list[memoryview]:
    """What is left behind the first `count` bytes."""
    for position, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[position + 1 :]]
        count -= len(view)
    return []


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise error(Status.UNSUPPORTED, f"{name} is not installed: apt-get install {name}")
    return found


@contextlib.contextmanager
def _running(command: list[str], path: Path) -> Iterator[None]:
    """A server that listens at `path`, until the end of the block."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not path.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise error(Status.UNAVAILABLE, f"{command[0]} did not start")
            time.sleep(LOOK_SECONDS)
        yield
    finally:
        server.terminate()
        server.wait()
