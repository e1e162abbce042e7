"""What everything that stores blocks keeps: the faces of the API and the adapters to engines alike.

A `Subject` puts, gets and finds blocks in whatever way it does that. A test class takes over the whole contract by subclassing `Contract`
and saying how a subject is opened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import pytest

from .faces import blocks_of, keys_of

BATCH = 24
MANY = 4096  # keys of one batch
PLACES = {
    "first": [0],
    "middle": [BATCH // 2],
    "last": [BATCH - 1],
    "hole of eight": list(range(8, 16)),
    "all": list(range(BATCH)),
}


class Subject(Protocol):
    """Something that stores blocks of one length. Keys are 32 bytes; results are in the order of the keys, one for each."""

    block_bytes: int

    def put(self, keys: Sequence[bytes], blocks: Sequence[bytes]) -> list[bool]:
        """Whether each is there now."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The block of each, None for a miss."""

    def exists(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each is there. Who can only tell how many of the first are there says False for all behind them."""

    def close(self) -> None: ...


# Opens a subject; what is given changes its identity: model, revision, dtype, heads, layout, salt or tenant (NamespaceSpec's fields).
Open = Callable[..., AbstractContextManager[Subject]]


def opener(make: Callable[..., Any], end: Callable[[Any], object] | None = None) -> Open:
    """Opens what `make(salt, small=..., identity=...)` makes, and closes it in the end. All that one test opens has one salt."""
    salt = f"{time.time_ns()}"

    @contextmanager
    def open_one(*, small: bool = False, **identity: Any) -> Iterator[Subject]:
        made = make(salt, small=small, identity=identity)
        try:
            yield made
        finally:
            made.close()
            if end is not None:
                end(made)

    return open_one


def whole_prefix(bits: Sequence[bool]) -> int:
    return next((row for row, bit in enumerate(bits) if not bit), len(bits))


def describe(subject: Subject) -> str:
    """What a subject says of its last batch, for who reads a failure."""
    return f"last: {getattr(subject, 'last', 'not told')}"


class Contract:
    """Subclasses have a fixture `open_subject` that is an `Open`."""

    identities: Sequence[dict[str, Any]] = (
        {"model": "llama-3.1-70b"},
        {"revision": "2"},
        {"dtype": "fp8"},
        {"heads": (0, 4)},
        {"layout": "layer_first"},
        {"salt": "another"},
        {"tenant": "another"},
    )
    many = MANY

    @pytest.fixture
    def subject(self, open_subject: Open) -> Any:
        with open_subject() as subject:
            yield subject

    def test_what_was_put_comes_back(self, subject: Subject) -> None:
        keys = keys_of(BATCH)
        blocks = blocks_of(keys, subject.block_bytes)
        assert subject.put(keys, blocks) == [True] * BATCH, describe(subject)
        assert subject.get(keys) == blocks
        assert subject.exists(keys) == [True] * BATCH

    def test_results_are_in_the_order_of_the_keys(self, subject: Subject) -> None:
        keys = keys_of(BATCH)
        blocks = blocks_of(keys, subject.block_bytes)
        subject.put(keys, blocks)
        assert subject.get(keys[::-1]) == blocks[::-1]
        assert subject.get([keys[3], keys[3], keys[1]]) == [blocks[3], blocks[3], blocks[1]]

    @pytest.mark.parametrize("missing", PLACES.values(), ids=PLACES.keys())
    def test_a_partial_miss_costs_nothing_else(self, subject: Subject, missing: list[int]) -> None:
        keys = keys_of(BATCH)
        blocks = blocks_of(keys, subject.block_bytes)
        there = [row for row in range(BATCH) if row not in missing]
        assert all(subject.put([keys[row] for row in there], [blocks[row] for row in there])), describe(subject)
        expected = [None if row in missing else block for row, block in enumerate(blocks)]
        found = subject.get(keys)
        assert len(found) == BATCH
        prefix = whole_prefix([block is not None for block in expected])
        assert found[:prefix] == expected[:prefix], f"what stands before a miss is good; {describe(subject)}"
        assert all(got in (None, block) for got, block in zip(found, blocks, strict=True)), "never another's bytes"
        assert all(found[row] is None for row in missing)
        assert whole_prefix(subject.exists(keys)) == prefix

    def test_an_empty_batch(self, subject: Subject) -> None:
        assert (subject.put([], []), subject.get([]), subject.exists([])) == ([], [], [])

    def test_putting_again_is_a_success_and_changes_nothing(self, subject: Subject) -> None:
        keys = keys_of(4)
        blocks = blocks_of(keys, subject.block_bytes)
        assert subject.put(keys, blocks) == [True] * 4, describe(subject)
        assert subject.put(keys, blocks_of(keys_of(4), subject.block_bytes)) == [True] * 4, describe(subject)
        assert subject.get(keys) == blocks, "blocks are immutable"

    def test_a_key_twice_in_a_batch(self, subject: Subject) -> None:
        [key] = keys_of(1)
        [block] = blocks_of([key], subject.block_bytes)
        assert subject.put([key, key], [block, block]) == [True, True]
        assert subject.get([key]) == [block]

    def test_many_put_the_same_key_at_once(self, open_subject: Open) -> None:
        keys = keys_of(8)
        blocks = blocks_of(keys, 1)
        results: list[list[bool]] = []
        with open_subject() as first, open_subject() as second:
            blocks = blocks_of(keys, first.block_bytes)
            start = threading.Barrier(4)

            def put(subject: Subject) -> None:
                start.wait()
                results.append(subject.put(keys, blocks))

            threads = [threading.Thread(target=put, args=(one,)) for one in (first, second, first, second)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == [[True] * 8] * 4, (describe(first), describe(second))
            assert first.get(keys) == second.get(keys) == blocks

    def test_thousands_of_keys(self, open_subject: Open) -> None:
        with open_subject(small=True) as subject:
            keys = keys_of(self.many)
            blocks = blocks_of(keys, subject.block_bytes)
            assert all(subject.put(keys, blocks)), describe(subject)
            assert all(subject.exists(keys))
            assert subject.get(keys) == blocks

    def test_who_differs_in_anything_sees_nothing(self, open_subject: Open) -> None:
        keys = keys_of(4)
        with open_subject() as subject:
            subject.put(keys, blocks_of(keys, subject.block_bytes))
            for identity in self.identities:
                with open_subject(**identity) as other:
                    assert other.exists(keys) == [False] * 4, identity
                    assert other.get(keys) == [None] * 4, identity

    def test_closing_twice(self, open_subject: Open) -> None:
        with open_subject() as subject:
            subject.put(keys := keys_of(1), blocks_of(keys, subject.block_bytes))
            subject.close()
            subject.close()
