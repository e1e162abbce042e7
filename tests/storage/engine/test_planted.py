"""Faults planted into the engine: the crash and model tests must find each, otherwise they prove nothing."""

from __future__ import annotations

from typing import Any

import pytest

from emberfs.storage.engine import recovery, rows
from emberfs.storage.engine.checkpoint import CHECKPOINT_KEY, Beside, Checkpoint, pack_number
from emberfs.storage.engine.engine import ChunkEngine
from emberfs.storage.engine.job import Job
from emberfs.storage.engine.space import Space

from .harness import small_pages
from .test_crash import WAYS, effects, live_and_die


def release_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Space, "retire", lambda self, slot, epoch: self.release(slot))


def release_one_checkpoint_early(patch: pytest.MonkeyPatch) -> None:
    retire = Space.retire
    patch.setattr(Space, "retire", lambda self, slot, epoch: retire(self, slot, epoch - 1))


def keep_no_fallback(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ChunkEngine, "_fallbacks", lambda *rest: ())


def keep_one_fallback_while_a_checkpoint_runs(patch: pytest.MonkeyPatch) -> None:
    fallbacks = ChunkEngine._fallbacks
    patch.setattr(ChunkEngine, "_fallbacks", lambda *rest: fallbacks(*rest)[:1])


def append_over_a_cut(patch: pytest.MonkeyPatch) -> None:
    new_state = Job._new_state

    def forgetful(self: Job, length: int, *rest: Any) -> Any:
        state = new_state(self, length, *rest)
        state.high = length
        return state

    patch.setattr(Job, "_new_state", forgetful)


def trust_every_row(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "is_intact", lambda *rest: True)


def sync_the_index_first(patch: pytest.MonkeyPatch) -> None:
    def run(self: Checkpoint, beside: Beside | None = None) -> None:
        self.index.write([(CHECKPOINT_KEY, pack_number(self.number))], sync=True)
        for handle in self.handles:
            self.disk.fdatasync(handle)
        if self.names:
            self.disk.sync_names()

    patch.setattr(Checkpoint, "run", run)


def forget_the_directory(patch: pytest.MonkeyPatch) -> None:
    run = Checkpoint.run

    def nameless(self: Checkpoint, beside: Beside | None = None) -> None:
        self.names = False
        run(self, beside)

    patch.setattr(Checkpoint, "run", nameless)


def overwrite_a_page_that_is_needed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rows, "free_copy", lambda row, page: 0)


def let_readers_go(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Space, "enter", lambda self: -1)


def append_to_what_others_have(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Space, "is_shared", lambda self, slot: False)


def free_with_the_first_that_lets_go(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Space, "share", lambda self, slot: None)
    patch.setattr(Space, "unshare", lambda self, slot: None)


def count_once_at_open(patch: pytest.MonkeyPatch) -> None:
    adopted = Space.adopted

    def forgetful(self: Space) -> None:
        self._shared.clear()
        adopted(self)

    patch.setattr(Space, "adopted", forgetful)


@pytest.mark.parametrize(
    "plant",
    [
        release_at_once,
        release_one_checkpoint_early,
        keep_no_fallback,
        keep_one_fallback_while_a_checkpoint_runs,
        append_over_a_cut,
        trust_every_row,
        sync_the_index_first,
        forget_the_directory,
        overwrite_a_page_that_is_needed,
        let_readers_go,
        append_to_what_others_have,
        free_with_the_first_that_lets_go,
        count_once_at_open,
    ],
)
def test_a_crash_finds_it(plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    small_pages(monkeypatch)
    with pytest.raises((AssertionError, OSError)):
        for seed in range(100, 140):
            for at in range(1, effects(seed) + 1):
                live_and_die(seed, at, *WAYS[(at + seed) % len(WAYS)])
