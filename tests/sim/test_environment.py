"""The simulator itself: virtual time, one seed, faults that mean what they say; and its first consumers, namespace and client core."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import pytest

from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.cluster_pb2 import GetRoutingRequest, Routing
from emberfs.proto.rpc import CLUSTER

from . import stories
from .environment import SimulatedEnvironment, Simulation, run_seed, run_seeds
from .loop import Host, Loop, Stuck
from .network import CALM, Weather


class Counter:
    """A service that counts how often it was asked."""

    def __init__(self, environment: SimulatedEnvironment, seconds: float = 0.0) -> None:
        self.spec = CLUSTER
        self.asked = 0
        self._environment = environment
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:  # only GetRouting is asked for
        return None

    async def get_routing(self, request: GetRoutingRequest, context: Any) -> Routing:
        self.asked += 1
        if self._seconds:
            await self._environment.sleep(self._seconds)
        return Routing(version=self.asked)


class Pair:
    """A client and a server that counts."""

    def __init__(self, seed: int = 1, weather: Weather = CALM, seconds: float = 0.0) -> None:
        self.simulation = Simulation(seed, weather)
        self.server, self.client = self.simulation.host("server"), self.simulation.host("client")
        self.counter = Counter(self.simulation.environment(self.server), seconds)
        self.address = self.simulation.network.serve(self.server, [self.counter])
        self.environment = self.simulation.environment(self.client)

    def call(self, timeout: float = 10.0) -> Call:
        return Call(self.address, CLUSTER.GetRouting, GetRoutingRequest(), timeout)

    async def ask(self, timeout: float = 10.0) -> Any:
        """The number of the answer, or the status of the failure."""
        try:
            return (await self.environment.call(self.call(timeout))).version
        except StatusError as failure:
            return failure.status

    def run(self, story: Any) -> Any:
        return self.simulation.run(story)


# The loop.


def test_time_is_virtual_and_tasks_interleave_by_seed() -> None:
    def order(seed: int) -> str:
        loop, seen = Loop(seed), []

        async def worker(name: str) -> None:
            for _ in range(5):
                seen.append(name)
                await loop.sleep(0)
            await loop.sleep(3600)

        async def story() -> None:
            tasks = [loop.host("h").spawn(worker(name), name) for name in "abc"]
            for task in tasks:
                await task

        loop.run(story())
        assert loop.time >= 3600
        return "".join(seen)

    assert order(1) == order(1)
    assert len({order(seed) for seed in range(10)}) > 1


def test_waiting_for_ever_is_noticed() -> None:
    loop = Loop(1)
    lock = SimulatedEnvironment(Simulation(1).network, loop.host("h")).lock()

    async def story() -> None:
        async with lock, lock:
            pass

    with pytest.raises(Stuck, match="everybody waits: story"):
        loop.run(story())


def test_a_failing_worker_ends_the_run() -> None:
    simulation = Simulation(1)
    environment = simulation.environment(simulation.host("h"))

    async def worker() -> None:
        await environment.sleep(1)
        raise ValueError("a bug")

    async def story() -> None:
        environment.spawn(worker, "worker")
        await environment.sleep(10)

    with pytest.raises(ValueError, match="a bug"):
        simulation.run(story())


def test_locks_are_fair_and_clocks_are_the_hosts_own() -> None:
    simulation = Simulation(3)
    host = simulation.host("h")
    host.clock_offset, host.clock_rate = 100.0, 1.1
    environment = simulation.environment(host)
    lock, inside, seen = environment.lock(), [], []

    async def worker(i: int) -> None:
        async with lock:
            inside.append(i)
            assert len(inside) == 1
            await environment.sleep(0.01)
            seen.append(inside.pop())

    async def story() -> None:
        assert environment.now() == 100.0
        await environment.sleep(1.1)
        assert environment.now() == pytest.approx(101.1)
        assert simulation.loop.time == pytest.approx(1.0)
        await simulation.gather(*(worker(i) for i in range(5)))
        assert sorted(seen) == list(range(5))

    simulation.run(story())


# The network.


def test_calls_are_answered_after_a_delay() -> None:
    pair = Pair()

    async def story() -> None:
        assert await pair.ask() == 1
        assert 2 * CALM.delay_seconds_min <= pair.simulation.loop.time <= 2 * CALM.delay_seconds_max
        answers = await pair.environment.call_many([pair.call() for _ in range(10)])
        assert sorted(answer.version for answer in answers) == list(range(2, 12))

    pair.run(story())


def test_messages_overtake_each_other() -> None:
    pair = Pair()

    async def story() -> list[int]:
        return [answer.version for answer in await pair.environment.call_many([pair.call() for _ in range(10)])]

    order = pair.run(story())
    assert order != sorted(order)


def test_what_is_lost_is_not_answered_and_may_have_happened() -> None:
    pair = Pair(weather=Weather(loss=0.3))

    async def story() -> None:
        answers = [await pair.ask(timeout=1.0) for _ in range(300)]
        lost = [answer for answer in answers if isinstance(answer, Status)]
        assert set(lost) == {Status.DEADLINE, Status.MAYBE_COMMITTED}
        assert 100 < len(lost) < 200
        assert (
            len(answers) - len(lost) < pair.counter.asked < len(answers)
        )  # some were done although the caller cannot know

    pair.run(story())


def test_doubled_requests_are_done_twice_and_answered_once() -> None:
    pair = Pair(weather=Weather(duplication=1.0))

    async def story() -> None:
        for _ in range(10):
            await pair.ask()
        await pair.environment.sleep(1)
        assert pair.counter.asked == 20

    pair.run(story())


def test_a_partition_one_way_and_both_ways() -> None:
    pair = Pair()
    network = pair.simulation.network

    async def story() -> None:
        network.partition([pair.client], [pair.server])
        assert await pair.ask() is Status.UNAVAILABLE  # it never was connected: nothing was sent
        network.heal()
        assert await pair.ask() == 1
        network.partition([pair.server], [pair.client], both_ways=False)
        assert await pair.ask() is Status.DEADLINE
        assert pair.counter.asked == 2  # the request had arrived
        network.heal()
        assert await pair.ask() == 3

    pair.run(story())


def test_a_frozen_server_answers_late() -> None:
    pair = Pair()

    async def story() -> None:
        assert await pair.ask() == 1
        pair.server.freeze()
        ticket = pair.environment.start(pair.call(timeout=60))
        assert await pair.ask(timeout=5) is Status.DEADLINE
        assert pair.counter.asked == 1
        pair.server.thaw()
        assert (await pair.environment.collect(ticket)).version in (2, 3)
        await pair.environment.sleep(1)
        assert pair.counter.asked == 3  # what the caller had given up is done all the same

    pair.run(story())


@pytest.mark.parametrize(("silent", "status"), [(False, Status.MAYBE_COMMITTED), (True, Status.DEADLINE)])
def test_a_crashed_server_finishes_nothing(silent: bool, status: Status) -> None:
    pair = Pair(seconds=5.0)

    async def story() -> None:
        ticket = pair.environment.start(pair.call(timeout=10))
        await pair.environment.sleep(1)
        assert pair.counter.asked == 1
        pair.server.crash(silent=silent)
        with pytest.raises(StatusError) as failure:
            await pair.environment.collect(ticket)
        assert failure.value.status is status
        assert await pair.ask() is Status.UNAVAILABLE
        pair.simulation.network.serve(pair.server, [pair.counter])
        assert await pair.ask() == 2

    pair.run(story())


def test_an_abandoned_call_is_cancelled() -> None:
    pair = Pair(seconds=5.0)

    async def story() -> None:
        ticket = pair.environment.start(pair.call())
        pair.environment.abandon(ticket)
        with pytest.raises(StatusError) as failure:
            await pair.environment.collect(ticket)
        assert failure.value.status is Status.CANCELLED

    pair.run(story())


def test_a_bug_in_a_handler_ends_the_run() -> None:
    pair = Pair()
    pair.counter.asked = "none"  # type: ignore[assignment]  # so that counting raises TypeError

    async def story() -> None:
        await pair.ask()

    with pytest.raises(TypeError):
        pair.run(story())


# Seeds.


def test_a_failure_names_its_seed() -> None:
    async def story(simulation: Simulation) -> None:
        simulation.loop.trace("about to fail")
        raise ValueError("bug")

    with pytest.raises(ValueError, match="bug") as failure:
        run_seed(story, 4711)
    notes = "\n".join(failure.value.__notes__)
    assert "EMBERFS_SIM_SEED=4711" in notes
    assert "about to fail" in notes


def test_what_is_not_of_the_seed_is_noticed() -> None:
    runs = itertools.count()

    async def story(simulation: Simulation) -> None:
        simulation.loop.trace(f"run {next(runs)}")

    with pytest.raises(AssertionError, match="outside the seed"):
        run_seeds(story, 1)


def hosts(simulation: Simulation, *names: str) -> list[Host]:
    return [simulation.host(name) for name in names]


# The first consumers.


@pytest.mark.parametrize("story", [stories.namespace_under_faults, stories.files_under_faults])
def test_same_seed_same_trace(story: Any) -> None:
    assert run_seed(story, 5) == run_seed(story, 5)
    assert run_seed(story, 5) != run_seed(story, 6)


def test_same_seed_same_trace_in_other_processes() -> None:
    """Hashes of str differ between processes, so whatever depends on the order of a set shows here."""
    code = (
        "from emberfs.tests.sim import stories; from emberfs.tests.sim.environment import run_seed\n"
        "print(run_seed(stories.namespace_under_faults, 8), run_seed(stories.files_under_faults, 8))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]  # before it: the log
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_the_soak_is_a_command() -> None:
    command = [sys.executable, "-P", "-m", "emberfs.tests.sim", "--story", "cuts", "--first", "1", "--seeds", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 runs of 'cuts' from seed 1 on, 0 failed" in done.stdout


def test_the_namespace_keeps_its_promises_under_faults() -> None:
    run_seeds(stories.namespace_under_faults, 20)


def test_files_keep_their_bytes_under_faults() -> None:
    run_seeds(stories.files_under_faults, 10)
