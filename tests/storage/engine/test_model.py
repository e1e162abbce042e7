"""The engine against a dictionary of bytes: every kind of update, reads at random places, reopening in every way."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine.engine import Kind, Opened, Receipt, Update
from emberfs.storage.engine.reads import verify

from .harness import CHUNK_SIZE, Target, check_invariants, clone, content, key, small_pages, write, written

CHUNKS = 4
UNIT = 4096
lengths = st.one_of(
    st.integers(1, 300),
    st.sampled_from([UNIT, 2 * UNIT, UNIT - 1, UNIT + 1, 3 * UNIT + 7]),
    st.integers(1, CHUNK_SIZE),
)
numbers = st.integers(0, CHUNKS - 1)


class EngineAgainstModel(RuleBasedStateMachine):
    """Committed contents, pending contents and receipts must be those of the model at all times."""

    def __init__(self) -> None:
        super().__init__()
        self.target = Target(cache_bytes=4000)  # a handful of rows: most are evicted
        self.model: dict[int, bytes] = {}
        self.pending: dict[int, tuple[int, bytes | None]] = {}
        self.receipts: dict[int, Receipt] = {}
        self.checkpoint = None
        self.readers: list = []
        self.seed = random.Random(7)

    @initialize()
    def begin(self) -> None:
        self.target.open()

    @property
    def engine(self):
        return self.target.engine

    def data(self, length: int) -> bytes:
        return self.seed.randbytes(length)

    def offset(self, number: int, where: int) -> int:
        size = len(self.model.get(number, b""))
        return (0, size, size // 2, max(0, size - 5), size // UNIT * UNIT, min(size + 5000, CHUNK_SIZE - 1))[where]

    def update(self, kind: str, number: int, where: int, length: int) -> Update:
        chunk = key(number)
        offset = self.offset(number, where)
        if kind == "write":
            offset = min(offset, CHUNK_SIZE - 1)
            return write(chunk, offset, self.data(min(length, CHUNK_SIZE - offset)))
        if kind == "truncate":
            return Update(Kind.TRUNCATE, chunk, min(length, CHUNK_SIZE), chunk_size=CHUNK_SIZE)
        return Update(Kind.REMOVE, chunk)

    @rule(
        kinds=st.lists(st.sampled_from(["write", "write", "write", "truncate", "remove"]), min_size=1, max_size=3),
        first=numbers,
        where=st.integers(0, 5),
        length=lengths,
        commit=st.booleans(),
    )
    def change(self, kinds: list[str], first: int, where: int, length: int, commit: bool) -> None:
        batch = [(k + first) % CHUNKS for k in range(len(kinds)) if (k + first) % CHUNKS not in self.pending]
        updates = {n: self.update(kind, n, where, length) for kind, n in zip(kinds, batch, strict=False)}
        jobs = {n: self.engine.prepare(update) for n, update in updates.items()}
        for job in jobs.values():
            job.run()
        receipts = [Receipt(b"c" * 16, n, job.version, job.version, job.length) for n, job in jobs.items()]
        self.engine.stage(list(jobs.values()), commit=commit, receipts=receipts)
        for n, receipt in zip(jobs, receipts, strict=True):
            self.receipts[n] = receipt
            self.pending[n] = (jobs[n].version, written(self.model.get(n), updates[n]))
        if commit:
            self.settle(list(jobs))

    def settle(self, chunks: list[int]) -> None:
        for n in chunks:
            _, new = self.pending.pop(n)
            if new is None:
                self.model.pop(n, None)
            else:
                self.model[n] = new

    @rule(
        first=numbers,
        second=numbers,
        limit=st.one_of(st.just(CHUNK_SIZE), st.integers(0, CHUNK_SIZE)),
        commit=st.booleans(),
        abandon=st.booleans(),
    )
    def clone(self, first: int, second: int, limit: int, commit: bool, abandon: bool) -> None:
        """The chunk `second` becomes what `first` is; without a source, or of no bytes, a hole."""
        if first in self.pending or second in self.pending or first == second:
            return
        update = clone(key(first), key(second), limit)
        job = self.engine.prepare(update)
        check_invariants(self.engine, [job])
        if abandon:
            self.engine.abandon(job)
            return
        job.run()
        self.engine.stage([job], commit=commit)
        self.pending[second] = (job.version, written(self.model.get(second), update, self.model.get(first)))
        if commit:
            self.settle([second])

    @precondition(lambda self: self.pending)
    @rule()
    def commit(self) -> None:
        self.engine.commit([(key(n), version) for n, (version, _) in self.pending.items()])
        self.settle(list(self.pending))

    @precondition(lambda self: self.pending)
    @rule(pick=st.integers(0, CHUNKS))
    def discard(self, pick: int) -> None:
        n = sorted(self.pending)[pick % len(self.pending)]
        self.engine.discard([key(n)])
        del self.pending[n]

    @rule(number=numbers, length=lengths)
    def replace(self, number: int, length: int) -> None:
        data = self.data(length)
        update = write(key(number), 0, data)._replace(kind=Kind.REPLACE, version=1 + length % 5)
        self.engine.apply([update])
        self.pending.pop(number, None)
        self.model[number] = data

    @rule(number=numbers, offset=st.integers(0, CHUNK_SIZE), length=lengths)
    def read_piece(self, number: int, offset: int, length: int) -> None:
        with self.engine.plan([(key(number), offset, length)]) as (plan,):
            if number not in self.model:
                assert plan.status is Status.CHUNK_NOT_FOUND
                return
            expected = self.model[number][offset : offset + length]
            assert (plan.status, plan.length) == (Status.OK, len(expected))
            data = bytearray(plan.length)
            half = plan.length // 2
            assert plan.read_into(self.engine.disk, (memoryview(data)[:half], memoryview(data)[half:]), False)
            verify(plan, offset, memoryview(data))
            assert data == expected

    @rule(number=numbers)
    def pin(self, number: int) -> None:
        if number in self.model and len(self.readers) < 3:
            self.readers.append((self.engine.plan([(key(number), 0, CHUNK_SIZE)]), self.model[number]))

    @precondition(lambda self: self.readers)
    @rule(first=st.booleans())
    def unpin(self, first: bool) -> None:
        self.look(*self.readers.pop(0 if first else -1))

    def look(self, batch, expected: bytes) -> None:
        """Pinned bytes never change, whatever happened to the chunk."""
        with batch as (plan,):
            data = bytearray(plan.length)
            assert plan.read_into(self.engine.disk, (data,), True)
            assert data == expected

    @rule()
    def step_checkpoint(self) -> None:
        if self.checkpoint is None:
            self.checkpoint = self.engine.begin_checkpoint()
        else:
            self.checkpoint.run()
            self.engine.finish_checkpoint(self.checkpoint)
            self.checkpoint = None

    @rule(clean=st.booleans())
    def reopen(self, clean: bool) -> None:
        while self.readers:
            self.look(*self.readers.pop())
        if self.checkpoint is not None:
            self.step_checkpoint()
        if clean:
            self.engine.close()
        else:
            self.target.kill()
        engine = self.target.open()
        assert engine.found.opened is (Opened.CLEAN if clean else Opened.KILLED)
        assert engine.found.pending == sorted(key(n) for n in self.pending)

    @invariant()
    def equal(self) -> None:
        if self.engine is None:
            return
        check_invariants(self.engine)
        for n in range(CHUNKS):
            assert content(self.engine, key(n)) == self.model.get(n)
            if n in self.pending and (new := self.pending[n][1]) is not None:
                assert self.engine.read(key(n), version=self.pending[n][0]) == new
            assert self.engine.receipt(b"c" * 16, n) == self.receipts.get(n)
        last = self.engine.query_last(key(0)[:10])
        assert last.found == bool(self.model)
        if self.model:
            assert last.chunk_index == max(self.model)
            assert last.length == len(self.model[max(self.model)])
            assert (last.chunks, last.content) == (len(self.model), sum(map(len, self.model.values())))
        listed = self.engine.chunks(key(0), key(CHUNKS))
        assert {info.chunk for info in listed if info.version} == {key(n) for n in self.model}


def run_machine(examples: int) -> None:
    class Machine(EngineAgainstModel):
        pass

    Machine.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    Machine.TestCase().runTest()


@pytest.mark.parametrize("pages", ["inline", "pages"])
def test_engine_equals_the_model(pages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if pages == "pages":
        small_pages(monkeypatch)
    run_machine(60)


def test_a_bad_offset_is_refused() -> None:
    engine = Target().open()
    for update in (
        write(key(0), CHUNK_SIZE, b"x"),
        write(key(0), -1, b"x"),
        write(key(0), 0, b""),
        write(key(0), 0, bytes(CHUNK_SIZE + 1)),
    ):
        with pytest.raises(StatusError) as caught:
            engine.prepare(update)
        assert caught.value.status is Status.INVALID
    check_invariants(engine)
