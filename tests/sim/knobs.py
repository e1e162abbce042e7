"""What one run of `chains` looks like: everything is drawn from the seed before it begins, so that a failing seed can say
what it was about."""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

from .network import Weather

CLOCK_RATE_SPREAD = 0.04  # clocks run so much too fast or too slow: two differ by less than storage/lease.py keeps back
CLOCK_OFFSET_SECONDS_MAX = 1000.0
CALM_SECONDS = 0.5  # that a message or a disk may take where nobody else is to be disturbed
ECHOES = 0.15  # share of the runs that are about requests that come once more, much later


class Power(enum.Enum):
    """What may lose its power, which decides what may be lost."""

    NEVER = "never"
    ONE = "one at a time"  # while the chain's other members live: nothing that was acknowledged is lost
    ALL = "all at once"  # what was not synced may be lost


class Trouble(enum.Enum):
    """What goes wrong, once or several times in a run."""

    KILL = "kill"  # a storage process, now
    KILL_ALL = "kill all"  # all storage processes, now or when one of them ends at an effect
    EFFECT = "effect"  # a storage process, before, in or after one of the next effects on its disk
    POWER = "power"  # of one node, or of all: see Power
    FREEZE = "freeze"  # SIGSTOP of a storage process
    FREEZE_MANAGER = "freeze manager"
    KILL_MANAGER = "kill manager"
    CUT_ONE = "cut one"  # a node from some others, one way or both
    CUT_NEIGHBOURS = "cut neighbours"  # one node from another one, while everybody else reaches both
    CUT_MANAGER = "cut manager"  # a node from the managers, while clients and other nodes reach it
    CUT_CLIENT = "cut client"
    DISK_ERROR = "disk error"  # of one of the next effects
    READ_ERRORS = "read errors"
    REPLACE = "replace"  # one node's disk, by an empty one
    FLIP = "flip"  # a bit on one node's disk
    SLOW = "slow"  # a node's disk and processor, for a while
    DISABLE = "disable"  # a target, by an administrator, for a while


class Mix(NamedTuple):
    """How often clients do what, against each other."""

    read: int
    write: int
    truncate: int
    sync: int
    remove: int = 2  # all of a file


MIXED = Mix(45, 37, 10, 6)
READERS = Mix(80, 15, 3, 2)
WRITERS = Mix(20, 70, 5, 5)
CUTTERS = Mix(30, 35, 33, 2)  # chunks come and go


@dataclass(frozen=True)
class Knobs:
    nodes: int
    replicas: int
    chains: int
    managers: int
    clients: int
    files: int
    chunks_per_file: int
    cell_bytes: int
    operations: int  # of each client
    mix: Mix
    probe: float  # share of reads that ask any member, whether it serves or not: it has to refuse
    pause_seconds: float  # between two of them, at most
    idle_seconds: float  # the same, for who has done all of them while there is still trouble
    attempt_seconds: float  # that a client waits for an answer before it tries again
    weather: Weather
    power: Power
    troubles: tuple[Trouble, ...]  # in this order
    quiet_seconds: float  # between two troubles, at most
    down_seconds: float  # until a process is started again, at most
    disk_seconds: float  # of one job of the disks, at most
    stall: float  # share of these jobs that take up to `stall_seconds` instead
    stall_seconds: float
    cold: bool  # nothing is in the page cache: reads wait for the disk
    clock_rates: tuple[float, ...]  # of nodes, then managers
    clock_offsets: tuple[float, ...]
    capacity: int  # bytes of a target

    def __str__(self) -> str:
        return "\n".join(f"  {field.name} = {getattr(self, field.name)}" for field in fields(self))


def draw(chance: random.Random) -> Knobs:
    """Small runs of every kind."""
    nodes = chance.choice([1, 2, 3, 3, 3, 4])
    replicas = min(nodes, chance.choice([1, 2, 2, 3, 3, 3]))
    managers = chance.choice([1, 1, 1, 2])
    power = chance.choice([Power.NEVER, Power.NEVER, Power.ONE, Power.ONE, Power.ALL]) if replicas > 1 else Power.NEVER
    hosts = nodes + managers
    drawn = Knobs(
        nodes=nodes,
        replicas=replicas,
        chains=chance.choice([1, 1, 2]),
        managers=managers,
        clients=chance.choice([2, 3, 3, 4]),
        files=chance.choice([1, 1, 2]),
        chunks_per_file=chance.choice([1, 1, 2]),
        cell_bytes=chance.choice([64, 1024, 4096, 6000]),
        operations=chance.choice([10, 15, 20, 30]),
        mix=chance.choice([MIXED, MIXED, READERS, WRITERS, CUTTERS]),
        probe=chance.choice([0.0, 0.1, 0.1, 0.5]),
        pause_seconds=chance.choice([0.05, 0.5, 2.0]),
        idle_seconds=chance.choice([1.0, 3.0, 3.0]),
        attempt_seconds=chance.choice([2.0, 4.0, 30.0]),
        weather=_draw_weather(chance),
        power=power,
        troubles=_draw_troubles(chance, power, replicas),
        quiet_seconds=chance.choice([0.5, 2.0, 6.0]),
        down_seconds=chance.choice([0.1, 2.0, 12.0, 12.0]),
        disk_seconds=chance.choice([0.0005, 0.005, 0.05]),
        stall=chance.choice([0.0, 0.0, 0.0, 0.02, 0.1, 0.3]),
        stall_seconds=chance.choice([0.5, 3.0, 25.0]),
        cold=chance.random() < 0.5,
        clock_rates=tuple(1 + chance.uniform(-CLOCK_RATE_SPREAD, CLOCK_RATE_SPREAD) for _ in range(hosts)),
        clock_offsets=tuple(chance.uniform(0, CLOCK_OFFSET_SECONDS_MAX) for _ in range(hosts)),
        capacity=chance.choice([1 << 20, 16 << 20, 16 << 20, 16 << 20]),
    )
    if chance.random() < ECHOES:
        return _with_echoes(drawn, chance)
    return _while_others_stay(drawn) if Trouble.FLIP in drawn.troubles else drawn


def _while_others_stay(drawn: Knobs) -> Knobs:
    """Where one copy is damaged, nothing takes so long that the others lose their places: what the last one has lost is lost."""
    weather = replace(drawn.weather, slow_seconds=min(drawn.weather.slow_seconds, CALM_SECONDS))
    return replace(drawn, weather=weather, stall_seconds=min(drawn.stall_seconds, CALM_SECONDS))


def _with_echoes(drawn: Knobs, chance: random.Random) -> Knobs:
    """Chunks come and go, the chain changes every few seconds, and what was sent under an older version of it comes once more."""
    return replace(
        drawn,
        mix=CUTTERS,
        idle_seconds=1.0,
        weather=Weather(duplication=0.3, echo_seconds=20.0),
        power=Power.NEVER,
        troubles=tuple(chance.choice([Trouble.KILL, Trouble.DISABLE, Trouble.FREEZE]) for _ in range(10)),
        quiet_seconds=3.0,
        down_seconds=0.1,
    )


def _draw_weather(chance: random.Random) -> Weather:
    if chance.random() < 0.3:
        return Weather()
    return Weather(
        slow=chance.choice([0.0, 0.02, 0.1, 0.3]),
        slow_seconds=chance.choice([0.1, 0.5, 3.0, 8.0, 25.0]),
        loss=chance.choice([0.0, 0.02, 0.05]),
        duplication=chance.choice([0.0, 0.02, 0.1, 0.3]),
        echo_seconds=chance.choice([0.0, 0.0, 3.0, 20.0]),
    )


def _draw_troubles(chance: random.Random, power: Power, replicas: int) -> tuple[Trouble, ...]:
    # A run is about a few kinds of trouble, so that some runs have much of one. What the only copy has lost is lost.
    lossy = {Trouble.FLIP, Trouble.REPLACE} if replicas == 1 else set()
    kinds: list[Trouble] = [kind for kind in Trouble if kind is not Trouble.POWER and kind not in lossy]
    chosen = chance.sample(kinds, chance.choice([1, 2, 3, 5]))
    if power is not Power.NEVER:
        chosen += [Trouble.POWER] * len(chosen)
    if Trouble.FLIP in chosen:  # where one copy is damaged, the others have to be there to repair it
        chosen = [kind for kind in chosen if kind not in (Trouble.POWER, Trouble.KILL_ALL, Trouble.REPLACE)]
    return tuple(chance.choice(chosen) for _ in range(chance.choice([1, 2, 3, 4, 6, 10])))
