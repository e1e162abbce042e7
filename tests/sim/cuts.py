"""The story of cuts: the one of chains, but nothing goes wrong except that storage nodes are cut off from each other, one or several
pairs, one way or both, while the managers and all clients reach all of them. Nobody's lease runs out, and no update waits for long."""

from __future__ import annotations

import random
from dataclasses import replace

from emberfs.meta.cluster.manager import NODE_LEASE_SECONDS

from . import knobs as drawing
from .chains import chains
from .cluster import ChainCluster
from .environment import Simulation
from .history import What
from .knobs import Power, Trouble
from .network import Weather

CUTS_MAX = 4  # of a run; they may last as long as the run
PATIENCE_LEASES = 6.0  # that an update may take, whatever is cut meanwhile
ATTEMPT_SECONDS = 60.0  # a client does not give up an answer


async def cuts(simulation: Simulation) -> None:
    chance = random.Random(simulation.seed)
    drawn = drawing.draw(chance)
    nodes = chance.choice([2, 3, 3, 4])
    hosts = nodes + 1
    knobs = replace(
        drawn,
        nodes=nodes,
        replicas=min(nodes, chance.choice([2, 3, 3])),
        managers=1,
        attempt_seconds=ATTEMPT_SECONDS,
        weather=Weather(),
        power=Power.NEVER,
        troubles=(Trouble.CUT_NEIGHBOURS,) * chance.randint(1, CUTS_MAX),
        disk_seconds=0.005,
        stall=0.0,
        clock_rates=tuple(1 + chance.uniform(-0.04, 0.04) for _ in range(hosts)),
        clock_offsets=tuple(chance.uniform(0, 1000.0) for _ in range(hosts)),
        capacity=16 << 20,
    )
    await chains(simulation, knobs, _nothing_waited_long)


def _nothing_waited_long(cluster: ChainCluster) -> None:
    longest = PATIENCE_LEASES * NODE_LEASE_SECONDS
    for history in cluster.histories.by_chunk.values():
        begun = {event.operation: event.time for event in history if event.what is What.CALL}
        for event in history:
            if event.what is What.END:
                waited = event.time - begun[event.operation]
                assert waited <= longest, f"{event.operation} took {waited:.1f} s"
