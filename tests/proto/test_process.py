"""Server plumbing, with real processes: readiness, JSON logs, clean stops, failures to start, metrics."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.process import METRICS_REQUEST_BYTES_MAX, Metrics

PROGRAM = """
import asyncio, logging, sys
from emberfs.proto.errors import Status, error
from emberfs.proto.process import parser, run

async def work():
    raise RuntimeError("worker broke")

async def main(process):
    mode = process.options.mode
    if mode == "refuse":
        raise error(Status.BUSY_RESOURCE, "port 1 is taken; choose another")
    if mode == "bug":
        raise ZeroDivisionError("oops")
    logging.getLogger("library").warning("from a library")
    process.ready(node=3, addresses=["unix:/x"], cluster="c")
    if mode == "worker":
        process.spawn(work(), "worker")
    await process.stopped()

options = parser("test", "a server")
options.add_argument("--mode", default="")
raise SystemExit(run("test", options.parse_args(), main))
"""


class Server:
    def __init__(self, *arguments: str) -> None:
        read, write = os.pipe()
        command = [sys.executable, "-c", PROGRAM, "--data", "/nonexistent", "--ready-fd", str(write), *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[write], text=True)
        os.close(write)
        self.pipe = os.fdopen(read)

    def ready(self) -> dict[str, Any]:
        return dict(json.loads(self.pipe.readline()))

    def end(self) -> tuple[int, list[dict[str, Any]]]:
        _, logs = self.process.communicate(timeout=60)
        return self.process.returncode, [json.loads(line) for line in logs.splitlines()]

    def close(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Any]:
    servers: list[Server] = []

    def begin(*arguments: str) -> Server:
        servers.append(Server(*arguments))
        return servers[-1]

    yield begin
    for server in servers:
        server.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_then_a_clean_stop(start: Any, number: signal.Signals) -> None:
    server = start()
    assert server.ready() == {"node": 3, "addresses": ["unix:/x"], "pid": server.process.pid, "cluster": "c"}
    assert server.pipe.read() == ""  # closed after the one line
    server.process.send_signal(number)
    code, logs = server.end()
    assert code == 0
    assert [line["event"] for line in logs] == ["from a library", "serving", "stopping", "stopped"]
    assert all(line["server"] == "test" and line["pid"] == server.process.pid and line["timestamp"] for line in logs)
    assert logs[0]["level"] == "warning"


def test_a_refusal_is_one_line_for_people_and_one_for_the_starter(start: Any) -> None:
    server = start("--mode", "refuse")
    assert server.ready() == {"error": "port 1 is taken; choose another"}
    code, logs = server.end()
    assert code == 1
    assert [line["status"] for line in logs] == ["BUSY_RESOURCE"] and "exception" not in logs[0]


def test_a_bug_comes_with_its_stack(start: Any) -> None:
    server = start("--mode", "bug")
    assert server.ready() == {"error": "ZeroDivisionError: oops"}
    code, logs = server.end()
    assert code == 1 and "ZeroDivisionError" in logs[-1]["exception"]


def test_a_failed_worker_takes_the_server_down(start: Any) -> None:
    server = start("--mode", "worker")
    assert server.ready()["node"] == 3
    code, logs = server.end()
    assert code == 1
    assert any(line.get("worker") == "worker" for line in logs)


def test_nobody_reading_the_ready_line_is_no_reason_to_fail(start: Any) -> None:
    server = start("--metrics", "tcp:127.0.0.1:0")
    server.pipe.close()
    assert server.process.stderr is not None
    while json.loads(server.process.stderr.readline())["event"] != "serving":
        pass
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0


async def fetch(address: str, request: bytes) -> bytes:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(rest)
    else:
        host, _, port = rest.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    reply = await reader.read()
    writer.close()
    return reply


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_metrics_are_served_where_asked(tmp_path: Path, kind: str) -> None:
    metrics = Metrics("test")
    metrics.gauge("emberfs_answer", "for the test", lambda: 42)
    server, address = await metrics.serve("tcp:127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/m.sock")
    try:
        reply = await fetch(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert reply.startswith(b"HTTP/1.1 200") and b"emberfs_answer 42.0" in reply
        assert b'emberfs_server_info{kind="test"} 1.0' in reply
        assert (await fetch(address, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        with contextlib.suppress(ConnectionError):
            assert await fetch(address, b"x" * 4 * METRICS_REQUEST_BYTES_MAX) == b""
    finally:
        server.close()


@pytest.mark.parametrize("address", ["tcp:0.0.0.0:0", "tcp:example.com:80", "tcp:127.0.0.1:x", "http://x", ""])
async def test_metrics_stay_on_this_machine(address: str) -> None:
    with pytest.raises(StatusError) as refused:
        await Metrics("test").serve(address)
    assert refused.value.status is Status.INVALID
