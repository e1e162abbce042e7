"""Many runs, each from a seed of its own: what `python -m emberfs.tests.sim` and the tests share."""

from __future__ import annotations

import os
import select
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from . import planted
from .chains import chains
from .cuts import cuts
from .environment import Story, run_seed
from .stories import files_under_faults, namespace_under_faults

STORIES: dict[str, Story] = {
    "chains": chains,
    "cuts": cuts,
    "namespace": namespace_under_faults,
    "files": files_under_faults,
}
SEED_BYTES = 5


@dataclass(frozen=True)
class Outcome:
    """Of one seed."""

    seed: int
    seconds: float
    failure: str = ""  # what it raised, in one line
    story: str = ""  # the traceback with everything that was noted


def fresh_seed() -> int:
    return int.from_bytes(os.urandom(SEED_BYTES), "big")


def run_one(story: str, seed: int, plant: str = "") -> Outcome:
    """One run, with a planted fault if `plant` names one. Never raises for what the run does."""
    began = time.monotonic()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    try:
        with planted.planted(plant):
            run_seed(STORIES[story], seed)
    except Exception as failed:
        line = f"{type(failed).__name__}: {failed}".replace("\n", " | ")
        return Outcome(seed, time.monotonic() - began, line, "".join(traceback.format_exception(failed)))
    finally:
        structlog.reset_defaults()
    return Outcome(seed, time.monotonic() - began)


def run_many(story: str, first: int, enough: Callable[[int, float], bool], plant: str = "") -> Iterator[Outcome]:
    """Seeds from `first` on, until `enough(runs, seconds)`."""
    began = time.monotonic()
    runs = 0
    while not enough(runs, time.monotonic() - began):
        yield run_one(story, first + runs, plant)
        runs += 1


def end_with(parent: int) -> None:
    """From now on this process, one of a pool, does not outlive who wants its outcomes. Here, where spawned processes find it."""
    descriptor = os.pidfd_open(parent)

    def watch() -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
