"""Who has to be told of a fork: before it, so that no lock is held by a thread that the child will not have, and after it on both
sides."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Forking(Protocol):
    """May be referred to weakly, and hashed."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None: ...

    def after_fork_in_child(self) -> None: ...


_followed: weakref.WeakSet[Forking] = weakref.WeakSet()
_registry = threading.Lock()  # held while _followed changes, and during a fork
_forking: list[Forking] = []


def follow(environment: Forking) -> None:
    """Tell it of every fork of this process, as long as it lives."""
    with _registry:
        _followed.add(environment)


def _before_fork() -> None:
    _registry.acquire()
    _forking.extend(_followed)
    for environment in _forking:
        environment.before_fork()


def _after_fork_in_parent() -> None:
    for environment in _forking:
        environment.after_fork_in_parent()
    _forking.clear()
    _registry.release()


def _after_fork_in_child() -> None:
    for environment in _forking:
        environment.after_fork_in_child()
    _forking.clear()
    _registry.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
