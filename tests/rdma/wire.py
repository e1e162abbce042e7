"""The wire between the VM's two devices, which can be cut, and what the kernel has of verbs objects."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emberfs.proto.errors import Status

from .vm import GUEST

BROKEN = (Status.MAYBE_COMMITTED, Status.UNAVAILABLE, Status.DEADLINE)  # what a caller may try again
CLIENT, SERVER = "rxe0", "rxe1"  # the devices of a client and a server between which the wire lies: see guest/network


def need_wire() -> None:
    """Skip a test where there is no wire that it may cut."""
    if not Path("/run/vm/job").exists():
        pytest.skip("only the VM's wire can be cut")


@contextmanager
def cut(how: str) -> Iterator[None]:
    """No packet passes: "down" as when a cable is pulled, "silent" as when a switch has lost its mind and nobody is told."""
    if how == "down":
        _run("ip", "link", "set", "veth0", "down")
    else:
        _run("tc", "qdisc", "add", "dev", "veth0", "root", "netem", "loss", "100%")
    try:
        yield
    finally:
        mend(how)


def mend(how: str) -> None:
    """The wire is as it was."""
    if how == "down":
        _run("ip", "link", "set", "veth0", "up")
        _run("bash", str(GUEST / "network"), "wires")  # a link that goes down takes its routes with it
    else:
        _run("tc", "qdisc", "del", "dev", "veth0", "root")


@contextmanager
def losing(percent: float) -> Iterator[None]:
    """Some packets are lost on the way, either way."""
    for device in ("veth0", "veth1"):
        _run("tc", "qdisc", "add", "dev", device, "root", "netem", "loss", f"{percent}%")
    try:
        yield
    finally:
        for device in ("veth0", "veth1"):
            _run("tc", "qdisc", "del", "dev", device, "root")


def objects(device: str) -> dict[str, int]:
    """How many protection domains, completion queues, queue pairs and memory regions the kernel has of a device (pd, cq, qp, mr)."""
    shown = json.loads(_run("rdma", "-j", "resource", "show", device))
    return {name: shown[0][name] for name in ("pd", "cq", "qp", "mr")}


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
