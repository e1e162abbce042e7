"""What every server process of emberfs has in common: options, logs, metrics, readiness, a clean stop.

A server's module is `raise SystemExit(run("storage", parser(...).parse_args(), main))`, where `main(process)` opens what it needs, calls
`process.ready(...)` when it serves, awaits `process.stopped()` and closes what it opened. Whoever started it reads one
JSON line from the descriptor given by `--ready-fd`: the addresses it serves, or why it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
import uvloop
from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from .errors import Status, StatusError, error
from .settings import time_scale

STOP_SECONDS_MAX = 30.0  # a clean stop that takes longer is ended by force
METRICS_REQUEST_BYTES_MAX = 8 << 10
METRICS_SECONDS_MAX = 5.0
COLLECT_AFTER_OBJECTS = 50_000  # new ones that are still there
LOG_LEVELS = ("debug", "info", "warning", "error")


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The options that all servers take; a server adds its own."""
    options = argparse.ArgumentParser(prog=program, description=description)
    options.add_argument("--data", metavar="DIR", required=True, help="data directory; made when missing")
    options.add_argument(
        "--listen",
        metavar="ADDRESS",
        action="append",
        default=[],
        help="unix:/path or tcp:host:port (port 0: any); may be repeated, best first",
    )
    options.add_argument("--secret-file", metavar="PATH", help="the cluster secret; needed beyond loopback")
    options.add_argument("--ready-fd", metavar="N", type=int, help="where to report readiness, as one line of JSON")
    options.add_argument(
        "--bound-fd", metavar="N", type=int, help="a pipe: stop when nobody holds its other end any more"
    )
    options.add_argument(
        "--name", default=socket.gethostname(), help="what people call this server (default: the host name)"
    )
    options.add_argument(
        "--metrics", metavar="ADDRESS", help="serve Prometheus metrics on tcp:127.0.0.1:port or unix:/path"
    )
    options.add_argument("--log-level", choices=LOG_LEVELS, default="info")
    return options


def configure_logging(kind: str, level: str) -> None:
    """JSON lines on stderr, for structlog and for the libraries' standard logging alike."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _names(kind),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)


def _names(kind: str) -> Callable[[Any, str, Any], Any]:
    pid = os.getpid()

    def add(_logger: Any, _method: str, event: Any) -> Any:
        event.setdefault("server", kind)
        event.setdefault("pid", pid)
        return event

    return add


class Metrics:
    """The process's Prometheus metrics, in a registry of its own (nothing global, so several servers fit into one test)."""

    def __init__(self, kind: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("emberfs_server", "Which server this is", registry=self.registry).info({"kind": kind})

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when somebody asks."""
        Gauge(name, text, registry=self.registry).set_function(read)

    async def serve(self, address: str) -> tuple[asyncio.Server, str]:
        """Answer `GET /metrics`; returns the listener and the address that it got. Raises INVALID beyond loopback: metrics are not
        authenticated."""
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            server = await asyncio.start_unix_server(self._answer, path, limit=METRICS_REQUEST_BYTES_MAX)
            os.chmod(path, 0o600)
            return server, address
        host, port = _loopback(address)
        server = await asyncio.start_server(self._answer, host, port, limit=METRICS_REQUEST_BYTES_MAX)
        return server, f"tcp:{host}:{server.sockets[0].getsockname()[1]}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(METRICS_SECONDS_MAX):
                request = await reader.readuntil(b"\r\n\r\n")
                path = request.split(b" ", 2)[1:2]
                if path == [b"/metrics"]:
                    status, body = "200 OK", generate_latest(self.registry)
                else:
                    status, body = "404 Not Found", b"only /metrics is here\n"
                head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE_LATEST}\r\nContent-Length: {len(body)}\r\n"
                writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
                await writer.drain()
        writer.close()


def _loopback(address: str) -> tuple[str, int]:
    try:
        scheme, _, rest = address.partition(":")
        host, _, port = rest.rpartition(":")
        if scheme == "tcp" and ipaddress.ip_address(host.strip("[]")).is_loopback:
            return host.strip("[]"), int(port)
    except ValueError:
        pass
    raise error(Status.INVALID, f"--metrics {address}: must be unix:/path or tcp:127.0.0.1:port")


@dataclass
class Process:
    """The server process in hand, as `main` sees it."""

    kind: str
    options: argparse.Namespace
    log: Any
    metrics: Metrics
    failure: BaseException | None = None
    _ready_fd: int = -1
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _workers: set[asyncio.Task[None]] = field(default_factory=set)

    def ready(self, *, node: int, addresses: Sequence[str], cluster: str) -> None:
        """It serves. `addresses` are where, with the ports that were chosen."""
        calm_collector()
        report = {"node": node, "addresses": list(addresses), "pid": os.getpid(), "cluster": cluster}
        self.log.info("serving", node=node, addresses=list(addresses), cluster=cluster, uid=os.getuid())
        self._report(report)

    def _report(self, report: dict[str, Any]) -> None:
        if self._ready_fd < 0:
            return
        # Whoever started us may be gone; that is no reason not to serve.
        with contextlib.suppress(OSError):
            os.write(self._ready_fd, json.dumps(report).encode() + b"\n")
        with contextlib.suppress(OSError):
            os.close(self._ready_fd)
        self._ready_fd = -1

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A background worker of this server. One that fails takes the server down with a clear log line: a server without its
        workers would look healthy and not be."""
        task = asyncio.create_task(work, name=name)
        self._workers.add(task)
        task.add_done_callback(self._worker_ended)
        return task

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            self.log.error("worker failed", worker=task.get_name(), exc_info=failed)
            self.fail(failed)

    def fail(self, why: BaseException) -> None:
        """Stop the process with exit code 1. May be called from any thread (a disk that fails is noticed by a thread that writes)."""
        self.failure = self.failure or why
        self.stop()

    def stop(self) -> None:
        """Begin the clean stop. May be called from any thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def stopped(self) -> None:
        """Returns when the process is asked to stop (SIGTERM, SIGINT, a failed worker)."""
        await self._stop.wait()

    async def end_workers(self) -> None:
        """Cancel what `spawn` started and wait for it."""
        workers = list(self._workers)
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


def calm_collector() -> None:
    """Let the garbage collector look less often, and not at what lives as long as the process.

    Requests make thousands of small objects that die by their reference count; with the interpreter's defaults the collector takes a
    quarter of the time of a storage server under small reads, to find nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 20, 50)


def run(kind: str, options: argparse.Namespace, main: Callable[[Process], Awaitable[None]]) -> int:
    """Run a server to its end; the exit code: 0 after SIGTERM or SIGINT, 1 when it could not start or broke down."""
    configure_logging(kind, options.log_level)
    ready_fd = -1 if options.ready_fd is None else options.ready_fd
    return uvloop.run(_run(kind, options, main, ready_fd))


async def _run(
    kind: str, options: argparse.Namespace, main: Callable[[Process], Awaitable[None]], ready_fd: int
) -> int:
    process = Process(kind, options, structlog.get_logger(), Metrics(kind), _ready_fd=ready_fd)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_stop, process, number)
    if options.bound_fd is not None:
        loop.add_reader(options.bound_fd, _left_alone, process, options.bound_fd)
    listener: asyncio.Server | None = None
    try:
        if options.metrics:
            listener, address = await process.metrics.serve(options.metrics)
            process.log.info("metrics", address=address)
        await main(process)
    except Exception as failed:
        process.failure = process.failure or failed
        _log_failure(process, failed)
    finally:
        if listener is not None:
            listener.close()
        await process.end_workers()
    if process.failure is not None:
        process._report({"error": _sentence(process.failure)})
        return 1
    process.log.info("stopped")
    return 0


def _asked_to_stop(process: Process, number: signal.Signals) -> None:
    _stop(process, number.name)


def _left_alone(process: Process, bond: int) -> None:
    asyncio.get_running_loop().remove_reader(bond)
    _stop(process, "whoever started this server has ended")


def _stop(process: Process, why: str) -> None:
    process.log.info("stopping", why=why)
    process.stop()
    loop = asyncio.get_running_loop()
    loop.call_later(STOP_SECONDS_MAX * time_scale(), _give_up, process)


def _give_up(process: Process) -> None:
    process.log.error("the clean stop took too long", seconds_max=STOP_SECONDS_MAX)
    os._exit(1)


def _log_failure(process: Process, failed: Exception) -> None:
    # What an operator can act on is one line; a bug comes with its stack.
    if isinstance(failed, StatusError) and failed.status is not Status.INTERNAL:
        process.log.error("cannot serve", status=failed.status.name, error=_sentence(failed))
    else:
        process.log.error("broke down", error=_sentence(failed), exc_info=failed)


def _sentence(failed: BaseException) -> str:
    if isinstance(failed, StatusError):
        return str(failed.strerror)
    return f"{type(failed).__name__}: {failed}"
