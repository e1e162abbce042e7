"""A folder that kills its process before a given step: every call that changes something is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from emberfs.client.checkpoints.folders import Draft, Folder, Source


class Steps:
    """Counts down; the process is gone when it has come to nothing. Threads may take the steps in any order."""

    def __init__(self, left: int) -> None:
        self.left = left

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class DyingDraft:
    def __init__(self, draft: Draft, steps: Steps) -> None:
        self.draft, self.steps = draft, steps

    def write(self, data: Any, offset: int) -> None:
        self.steps.step()
        self.draft.write(data, offset)

    def fsync(self) -> None:
        self.steps.step()
        self.draft.fsync()

    def discard(self) -> None:
        self.draft.discard()


class DyingFolder:
    def __init__(self, folder: Folder, left: int) -> None:
        self.folder, self.steps, self.url = folder, Steps(left), folder.url

    def make(self) -> None:
        self.steps.step()
        self.folder.make()

    def child(self, name: str) -> Folder:
        return self.folder.child(name)

    def entries(self) -> dict[str, Any]:
        return self.folder.entries()

    def draft(self, *, large: bool = True) -> Draft:
        self.steps.step()
        return DyingDraft(self.folder.draft(large=large), self.steps)

    def publish(self, drafts: Sequence[Draft], names: Sequence[str]) -> None:
        # Local names are given one after the other: a step each.
        for draft, name in zip(drafts, names, strict=True):
            self.steps.step()
            self.folder.publish([draft.draft], [name])  # type: ignore[attr-defined]

    def open(self, name: str) -> Source:
        return self.folder.open(name)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self.steps.step()
            self.folder.remove([name])

    def remove_all(self, *, forever: bool = False) -> None:
        self.folder.remove_all(forever=forever)

    def sync(self) -> None:
        self.steps.step()
        self.folder.sync()


def lived(work: Callable[[], object]) -> bool:
    """Whether a forked process did all of this; False if it was killed on the way. Anything else fails."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, f"exit status {status:#x}"
    return status == 0
