"""Faults of processes, drawn from a seed: killed and started again, stopped and continued, one or several at a time."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol

from emberfs.proto.settings import time_scale

LEASE_S = 5.0  # of a storage process, before the time scale

Fault = AbstractContextManager[None]  # begins when it is entered, ends when it is left


class Servers(Protocol):
    """What faults need of a cluster."""

    @property
    def nodes(self) -> list[str]: ...
    def pid_of(self, role: str) -> int: ...
    def kill(self, role: str) -> None: ...
    def start(self, role: str) -> object: ...


@contextlib.contextmanager
def killed(servers: Servers, role: str) -> Iterator[None]:
    servers.kill(role)
    try:
        yield
    finally:
        servers.start(role)


@contextlib.contextmanager
def stopped(servers: Servers, role: str) -> Iterator[None]:
    """SIGSTOP: its connections stay open, and when it goes on it believes for a moment that nothing has happened."""
    pid = servers.pid_of(role)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pause(chance: random.Random, seconds_max: float) -> None:
    """The moment of a fault is drawn, not waited for."""
    time.sleep(chance.uniform(0, seconds_max))


def draw_process_faults(servers: Servers, chance: random.Random) -> list[Fault]:
    """One or two storage processes, sometimes with the metadata server, sometimes that alone."""
    victims = chance.sample(servers.nodes, chance.choice([0, 1, 1, 1, 2]))
    faults: list[Fault] = [chance.choice([killed, stopped])(servers, role) for role in victims]
    if not victims or chance.random() < 0.2:
        faults.append(killed(servers, "meta"))
    return faults


def run_round(chance: random.Random, faults: list[Fault], check: Callable[[], None], seconds_max: float = 0.0) -> None:
    """Begin the faults one after the other, let them last, end them in the reverse order. `seconds_max` 0: up to two and a half leases,
    so that places are given away in about half of the cases."""
    longest = seconds_max or 2.5 * LEASE_S * time_scale()
    with ExitStack() as stack:
        for fault in faults:
            stack.enter_context(fault)
            pause(chance, longest / 8)
        pause(chance, longest)
        check()
    check()
