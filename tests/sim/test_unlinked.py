"""Files that are open for reading while others replace and remove them: their bytes stay until the last reader is gone, and no longer."""

from __future__ import annotations

from emberfs.client.core.client import Core
from emberfs.client.core.options import parse_mode
from emberfs.client.core.whole import write_bytes
from emberfs.proto.errors import Status, StatusError

from .environment import Simulation, run_seeds
from .network import CALM, ROUGH
from .stories import Cluster, content, trouble

NAMES = ("ann", "bob", "eve")
VERSIONS = 12
AMBIGUOUS = {Status.DEADLINE, Status.MAYBE_COMMITTED, Status.SESSION_ENDED}
COLLECTED_SECONDS = 200.0  # three renewals, two rounds, a lease of somebody who could not say goodbye


async def unlinked_under_faults(simulation: Simulation) -> None:
    """Each client replaces or removes a file of its own, and keeps others' files open for up to two minutes. What it opened is what it
    reads, unless it lost its lease meanwhile; in the end nothing is left but what has a name."""
    cluster = await Cluster(simulation).start()
    cores = [await cluster.client(name) for name in NAMES]
    chance = simulation.random
    simulation.network.weather = ROUGH

    async def write(core: Core, name: str) -> None:
        for version in range(1, VERSIONS + 1):
            try:
                await write_bytes(core, f"/{name}.new", content(name, version))
                await core.rename(f"/{name}.new", f"/{name}")
                if chance.random() < 0.2:
                    await core.unlink(f"/{name}")
            except FileNotFoundError:
                pass  # an attempt whose answer was lost did it
            except StatusError as failure:
                assert failure.status in AMBIGUOUS, failure
            await core.env.sleep(chance.uniform(0, 20))

    async def read(core: Core) -> None:
        for _ in range(5):
            await core.env.sleep(chance.uniform(0, 20))
            name = chance.choice(NAMES)
            epoch = core.epoch
            try:
                file = await core.open(f"/{name}", parse_mode("rb"))
                version = int.from_bytes(await file.pread(2, 0), "big")
                await core.env.sleep(chance.uniform(0, 120))
                found = await file.pread(file.size, 0)
                await file.close()
            except FileNotFoundError:
                continue
            except StatusError as failure:
                assert failure.status in AMBIGUOUS or core.epoch != epoch, failure
                continue
            simulation.loop.trace(f"{core.options.name} reads {name} {version}")
            assert found == content(name, version) or core.epoch != epoch

    work = [write(core, name) for core, name in zip(cores, NAMES, strict=True)]
    await simulation.gather(*work, *(read(core) for core in cores for _ in "12"), trouble(cluster, 5))
    simulation.network.weather = CALM
    simulation.network.heal()
    names = await cores[0].listdir("/")
    named = {(await cores[0].stat(f"/{name}")).inode for name in names}
    for core in cores:
        await core.close()
    await simulation.loop.sleep(COLLECTED_SECONDS)
    assert (await cluster.namespace.counts())[1] == 0, "garbage is left"
    assert {inode for inode, _ in cluster.storage.chunks} <= named
    await cluster.check()


def test_open_files_outlive_their_names_under_faults() -> None:
    run_seeds(unlinked_under_faults, 10)
