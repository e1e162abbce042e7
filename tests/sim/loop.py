"""A deterministic event loop: one thread, virtual time, one seed. No asyncio.

Everything that happens is a step of a task; which of the ready tasks goes next is drawn from the seed, and time jumps to the next timer
when none is ready. What happened is written into a trace, whose digest tells two runs apart: the same seed gives the same digest, in
every process.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from emberfs.storage.engine.simulated import Crash

STEPS_MAX = 5_000_000  # of one run; more means that it never ends
TRACE_LINES_KEPT = 60  # shown with a failure

_Result = TypeVar("_Result")


class Stuck(AssertionError):
    """Nothing can happen any more, or too much did."""


class Future(Generic[_Result]):
    """What a task waits for. Settled once; later attempts are ignored, as with an answer that comes too late."""

    def __init__(self) -> None:
        self.done = False
        self.failure: BaseException | None = None
        self.value: Any = None
        self._waiters: list[Callable[[], None]] = []

    def resolve(self, value: _Result) -> None:
        if not self.done:
            self.value = value
            self._settle()

    def fail(self, failure: BaseException) -> None:
        if not self.done:
            self.failure = failure
            self._settle()

    def _settle(self) -> None:
        self.done = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter()

    def when_done(self, call: Callable[[], None]) -> None:
        if self.done:
            call()
        else:
            self._waiters.append(call)

    def __await__(self) -> Generator[Future[_Result], None, _Result]:
        if not self.done:
            yield self
        if self.failure is not None:
            raise self.failure
        return self.value  # type: ignore[no-any-return]


class Host:
    """A machine: its tasks stop together, and it has a clock of its own. `Loop.host` makes one."""

    def __init__(self, loop: Loop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.incarnation = 1
        self.frozen = False
        self.clock_offset = 0.0  # seconds
        self.clock_rate = 1.0
        self.when_killed: list[Callable[[], None]] = []  # what peers notice when its processes are gone
        self._parked: list[Task[Any]] = []

    def now(self) -> float:
        """Seconds on this machine's own clock."""
        return self.loop.time * self.clock_rate + self.clock_offset

    def spawn(self, work: Coroutine[Any, Any, _Result], name: str, *, loud: bool = False) -> Task[_Result]:
        """Run a coroutine on this machine. `loud`: nobody awaits it, so what it raises ends the run."""
        return Task(self, work, name, loud)

    def freeze(self) -> None:
        """SIGSTOP: no task runs until `thaw`, while its timers and messages run on."""
        self.loop.trace(f"{self.name} freezes")
        self.frozen = True

    def thaw(self) -> None:
        self.loop.trace(f"{self.name} thaws")
        self.frozen = False
        parked, self._parked = self._parked, []
        self.loop.ready += parked

    def crash(self, *, silent: bool = False) -> None:
        """kill -9: what its tasks were doing is never finished. Whatever is spawned from now on is another process. `silent`: the
        power failed, so its peers' connections are not reset."""
        self.loop.trace(f"{self.name} crashes{' silently' if silent else ''}")
        self.incarnation += 1
        self.frozen = False
        self._parked.clear()
        for notice in [] if silent else self.when_killed:
            notice()

    def park(self, task: Task[Any]) -> None:
        self._parked.append(task)


class Task(Future[_Result]):
    def __init__(self, host: Host, work: Coroutine[Any, Any, _Result], name: str, loud: bool) -> None:
        super().__init__()
        self.name = name
        self.host = host
        self._incarnation = host.incarnation
        self._work = work
        self._loud = loud
        self._stopped = False
        self.waits_for: Future[Any] | None = None
        host.loop.tasks[self] = None
        host.loop.ready.append(self)

    @property
    def dead(self) -> bool:
        """It will never run again, although it has not ended."""
        return self._stopped or self._incarnation != self.host.incarnation

    def stop(self) -> None:
        """It is not resumed any more."""
        self._stopped = True

    def step(self) -> None:
        """Run until it waits for something or ends."""
        host = self.host
        if self.dead:
            return
        if host.frozen:
            host.park(self)
            return
        try:
            self.waits_for = self._work.send(None)
        except StopIteration as end:
            self._end()
            self.resolve(end.value)
        except Crash:
            self._end()  # with the process, which has ended
        except Exception as failure:
            self._end()
            if self._loud:
                host.loop.broken = host.loop.broken or failure
            self.fail(failure)
        else:
            assert isinstance(self.waits_for, Future), (
                f"{self.name} awaits {self.waits_for!r}, which is not of this loop"
            )
            self.waits_for.when_done(self._wake)

    def _end(self) -> None:
        del self.host.loop.tasks[self]

    def _wake(self) -> None:
        self.waits_for = None
        self.host.loop.ready.append(self)

    def close(self) -> None:
        """The run is over: let the coroutine go. What its `finally` clauses want to wait for does not matter any more."""
        self._stopped = True
        with suppress(RuntimeError):
            self._work.close()


class Lock:
    """A mutual exclusion for `async with`; who came first goes first."""

    def __init__(self) -> None:
        self._held = False
        self._queue: deque[Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._held:
            turn: Future[None] = Future()
            self._queue.append(turn)
            await turn
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        if self._queue:
            self._queue.popleft().resolve(None)  # still held, by the next one
        else:
            self._held = False


class Loop:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.time = 0.0  # seconds since the run began
        self.ready: list[Task[Any]] = []
        self.tasks: dict[Task[Any], None] = {}  # that have not ended, in the order of their making
        self.broken: BaseException | None = None  # what ends the run
        self.lines: deque[str] = deque(maxlen=TRACE_LINES_KEPT)
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._digest = hashlib.blake2b(digest_size=16)

    def host(self, name: str) -> Host:
        return Host(self, name)

    def call_at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (max(time, self.time), next(self._numbers), call))

    async def sleep(self, seconds: float) -> None:
        """Virtual seconds; with 0, others may go first."""
        over: Future[None] = Future()
        self.call_at(self.time + max(seconds, 0.0), lambda: over.resolve(None))
        await over

    def trace(self, line: str) -> None:
        """Note what happened. Nothing that differs between two runs may be in it: no address, no id of an object, no real time."""
        text = f"{self.time:12.6f} {line}"
        self.lines.append(text)
        self._digest.update(text.encode() + b"\n")

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def run(self, story: Coroutine[Any, Any, _Result]) -> _Result:
        """Run until the story ends. Raises what it raises, what a loud task raises, and Stuck."""
        main = self.host("story").spawn(story, "story")
        try:
            for _ in range(STEPS_MAX):
                if self.broken is not None:
                    raise self.broken
                if main.done:
                    break
                if self.ready:
                    self._step()
                elif self._timers:
                    self._pass_time()
                else:
                    raise Stuck(f"everybody waits: {', '.join(sorted(task.name for task in self.tasks))}")
            else:
                raise Stuck(f"not over after {STEPS_MAX} steps")
        finally:
            for task in list(self.tasks):
                task.close()
        if main.failure is not None:
            raise main.failure
        return main.value  # type: ignore[no-any-return]

    def _step(self) -> None:
        ready = self.ready
        chosen = self.random.randrange(len(ready)) if len(ready) > 1 else 0
        ready[chosen], ready[-1] = ready[-1], ready[chosen]
        ready.pop().step()

    def _pass_time(self) -> None:
        self.time, _, call = heapq.heappop(self._timers)
        call()
