"""Addresses and the sockets behind them: "unix:/path" (spoken: shm), "tcp:host:port", "local:name"."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import Status, error
from ..rpc import Identity

UNIX_PATH_BYTES_MAX = 107
BACKLOG = 1024
KEEPALIVE_IDLE_SECONDS = 10  # then 3 probes, 5 s apart: a host that vanished is noticed by who only listens
_SO_PEERGROUPS = 59
_PEERCRED = struct.Struct("iII")


def split(address: str) -> tuple[str, str]:
    """("unix" | "tcp" | "local", the rest). Raises INVALID."""
    kind, _, rest = address.partition(":")
    if kind not in ("unix", "tcp", "local") or not rest:
        raise error(Status.INVALID, f"{address!r} is no address: write unix:/path or tcp:host:port")
    return kind, rest


def host_port(rest: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port". Raises INVALID."""
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise error(Status.INVALID, f"tcp:{rest}: write tcp:host:port, the port a number up to 65535")
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextmanager
def _short(path: str) -> Iterator[str]:
    """The path, or one through /proc/self/fd where it is longer than a socket address can hold."""
    if len(os.fsencode(path)) <= UNIX_PATH_BYTES_MAX:
        yield path
        return
    folder, name = os.path.split(path)
    descriptor = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        short = f"/proc/self/fd/{descriptor}/{name}"
        if len(os.fsencode(short)) > UNIX_PATH_BYTES_MAX:
            raise error(Status.NAME_TOO_LONG, f"the name of the socket {path} is too long; use a shorter one")
        yield short
    finally:
        os.close(descriptor)


def connect_unix(sock: socket.socket, path: str) -> None:
    """Connect under the socket's own time-out (it never waits long: the kernel queues it). Raises OSError."""
    with _short(path) as short:
        sock.connect(short)


def listen_unix(path: str, mode: int = 0o600) -> socket.socket:
    """A listening Unix socket with these permissions. Takes the place of a dead one. Raises BUSY_RESOURCE, or OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(
            sock.fileno(), mode
        )  # Linux gives the file the permissions of the socket: never open, not even for a moment
        with _short(path) as short:
            try:
                sock.bind(short)
            except OSError as taken:
                if taken.errno != errno.EADDRINUSE:
                    raise
                _remove_dead(path, short)
                sock.bind(short)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_dead(path: str, short: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise error(Status.EXISTS, f"{path} exists and is no socket; remove it or listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except BlockingIOError:
            pass  # its queue is full: somebody is there
    raise error(Status.BUSY_RESOURCE, f"another server listens on {path}; stop it first")


def resolve_listener(rest: str, secret: bytes) -> tuple[socket.AddressFamily, Any]:
    """Family and socket address to listen on for "host:port". Raises INVALID, and UNAUTHENTICATED for an address other than loopback
    without a secret."""
    host, port = host_port(rest)
    family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    if not secret and not ipaddress.ip_address(where[0]).is_loopback:
        raise error(
            Status.UNAUTHENTICATED,
            f"tcp:{rest}: without a cluster secret only loopback addresses are served; give --secret-file",
        )
    return family, where


def listen_tcp(rest: str, secret: bytes) -> socket.socket:
    """A listening TCP socket. Raises as `resolve_listener`, BUSY_RESOURCE, OSError."""
    family, where = resolve_listener(rest, secret)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(where)
        except OSError as taken:
            if taken.errno != errno.EADDRINUSE:
                raise
            raise error(Status.BUSY_RESOURCE, f"tcp:{rest} is taken by another process; choose another port") from taken
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def tcp_name(where: Any) -> str:
    """ "tcp:host:port" of a socket address."""
    return f"tcp:[{where[0]}]:{where[1]}" if ":" in where[0] else f"tcp:{where[0]}:{where[1]}"


def tune_tcp(sock: socket.socket) -> None:
    """No delay for small frames; a peer that vanished is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def peer_identity(sock: socket.socket) -> tuple[Identity, int]:
    """Whom the kernel says is at the other end of a Unix socket, and its process id."""
    pid, uid, gid = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return Identity(uid, gid, _peer_groups(sock), trusted=uid in (0, os.geteuid())), pid


def _peer_groups(sock: socket.socket) -> tuple[int, ...]:
    for count in (64, 65536):
        try:
            data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * count)
        except OSError as too_small:
            if too_small.errno == errno.ERANGE:
                continue
            return ()
        return struct.unpack(f"{len(data) // 4}I", data)
    return ()
