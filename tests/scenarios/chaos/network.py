"""Hosts on one machine: network namespaces on a bridge, and cuts between any two of them, in both directions or in one.

A cut is made of addresses: the sender's entry for the other host's link address is a wrong one, so its frames reach nobody, and nobody says
so: as if the cable's one direction were broken. All entries are permanent, so nothing is asked and nothing learnt. Only root may do all
this; nothing of it is seen by the rest of the machine, whose own network is not touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

CLONE_NEWNET = 0x40000000  # <sched.h>
NAMESPACES = Path("/run/netns")  # where ip(8) keeps them
NOBODY = "02:00:00:00:00:ff"
PREFIX = "emberfs-"  # of the namespaces' names, then the process id


def ip(*arguments: str) -> None:
    """Run ip(8). Raises CalledProcessError."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@functools.cache
def cannot() -> str:
    """Why namespaces cannot be made here; empty when they can."""
    if os.geteuid():
        return "only root makes network namespaces"
    name = f"{PREFIX}{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "other")
            ip("-n", name, "link", "add", "bridge", "type", "bridge")
        finally:
            ip("netns", "del", name)
    except FileNotFoundError:
        return "no network namespaces: ip(8) is missing"
    except subprocess.CalledProcessError as refused:
        return f"no network namespaces: {refused.stderr.strip()}"
    return ""


class Network:
    """Hosts by name; each has one interface and an address. Left behind as it was found."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = list(hosts)
        self._made: list[str] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Network:
        _sweep()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _build(self) -> None:
        switch = self._add("switch")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            name = self._add(host)
            port = f"to-{host}"
            ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "eth0", "address", self._link_address(host))
            ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        for host in self.hosts:
            for other in self.hosts:
                if other != host:
                    self._point(host, other, self._link_address(other))

    def _add(self, host: str) -> str:
        ip("netns", "add", self._name(host))
        self._made.append(self._name(host))
        return self._made[-1]

    def _remove(self) -> None:
        for name in self._made:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", name)
        self._made.clear()

    @staticmethod
    def _name(host: str) -> str:
        return f"{PREFIX}{os.getpid()}-{host}"

    def address(self, host: str) -> str:
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def _link_address(self, host: str) -> str:
        return f"02:00:00:00:00:{self.hosts.index(host) + 1:02x}"

    def _point(self, host: str, other: str, link_address: str) -> None:
        entry = [self.address(other), "lladdr", link_address, "dev", "eth0", "nud", "permanent"]
        ip("-n", self._name(host), "neigh", "replace", *entry)

    # --- cuts ---

    @contextlib.contextmanager
    def cut(self, host: str, other: str, *, one_way: bool = False) -> Iterator[None]:
        """Nothing of `host` reaches `other`; nor the other way round, unless `one_way`."""
        directions = [(host, other)] if one_way else [(host, other), (other, host)]
        for sender, receiver in directions:
            self._point(sender, receiver, NOBODY)
        try:
            yield
        finally:
            for sender, receiver in directions:
                self._point(sender, receiver, self._link_address(receiver))

    # --- who is where ---

    def within(self, host: str) -> list[str]:
        """Begins a command that runs on this host."""
        return ["ip", "netns", "exec", self._name(host)]

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """What this thread connects to, and the threads that it starts, is seen from this host."""
        with open("/proc/thread-self/ns/net") as home, open(NAMESPACES / self._name(host)) as there:
            self._enter(there.fileno())
            try:
                yield
            finally:
                self._enter(home.fileno())

    def _enter(self, namespace: int) -> None:
        if self._libc.setns(namespace, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _sweep() -> None:
    """Remove what runs that were killed left behind."""
    for path in NAMESPACES.glob(f"{PREFIX}*-*") if NAMESPACES.is_dir() else ():
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", path.name)
