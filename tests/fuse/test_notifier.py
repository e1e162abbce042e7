"""The notifier's threads, with a list for a kernel that may be slow."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from emberfs.fuse import notifier, replies
from emberfs.fuse.notifier import Notifier

SECONDS_MAX = 60.0


class Kernel:
    """Takes frames as long as it is not held up."""

    def __init__(self, answer: int = 0) -> None:
        self.frames: list[bytes] = []
        self.answer = answer
        self.free = threading.Event()
        self.free.set()
        self.most = threading.Semaphore(0)

    def send(self, frame: bytes) -> int:
        self.most.release()
        assert self.free.wait(SECONDS_MAX)
        self.frames.append(frame)
        return self.answer


def with_notifier(kernel: Kernel, work: Callable[[Notifier], Coroutine[Any, Any, None]]) -> Notifier:
    async def main() -> Notifier:
        made = Notifier(kernel.send)
        await work(made)
        await made.close(SECONDS_MAX)
        return made

    return asyncio.run(main())


def test_all_that_was_said_is_sent_before_it_closes() -> None:
    kernel = Kernel()

    async def work(made: Notifier) -> None:
        for number in range(200):
            assert made.post(b"%d" % number)

    assert with_notifier(kernel, work).sent == 200
    assert sorted(kernel.frames, key=int) == [b"%d" % number for number in range(200)]


@pytest.mark.parametrize("answer", [errno.ENOENT, errno.ENODEV, errno.ENOTEMPTY])
def test_what_the_kernel_does_not_know_needs_nothing(answer: int) -> None:
    async def work(made: Notifier) -> None:
        await made.inode(5)
        await made.entry(1, b"name")
        await made.delete(1, 5, b"name")

    assert with_notifier(Kernel(answer), work).refused == 0


def test_a_refusal_is_said_in_the_log_and_ends_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def work(made: Notifier) -> None:
        await asyncio.wait_for(made.inode(5), SECONDS_MAX)

    assert with_notifier(Kernel(errno.EINVAL), work).refused == 1
    assert "refused" in caplog.text


def test_one_that_the_kernel_holds_up_holds_up_no_others() -> None:
    kernel = Kernel()

    async def work(made: Notifier) -> None:
        kernel.free.clear()
        for _ in range(3 * notifier.THREADS_MAX):
            made.post(b"held")
        for _ in range(notifier.THREADS_MAX):
            assert kernel.most.acquire(timeout=SECONDS_MAX)
        assert not kernel.most.acquire(blocking=False)
        kernel.free.set()

    assert with_notifier(kernel, work).sent == 3 * notifier.THREADS_MAX


def test_names_that_the_kernel_holds_up_hold_up_no_inode() -> None:
    """Who holds the directory's lock that they wait for may be waiting for the inode."""
    kernel = Kernel()
    sent: list[bytes] = []

    def send(frame: bytes) -> int:
        if b"name" in frame:
            return kernel.send(frame)
        sent.append(frame)
        return 0

    async def main() -> None:
        made = Notifier(send)
        kernel.free.clear()
        for _ in range(3 * notifier.THREADS_MAX):
            made.post(replies.notify_inval_entry(1, b"name"))
            made.post(replies.notify_delete(1, 7, b"name"))
        await asyncio.wait_for(made.inode(5), SECONDS_MAX)
        assert (len(sent), len(kernel.frames)) == (1, 0)
        kernel.free.set()
        await made.close(SECONDS_MAX)
        assert made.sent == 6 * notifier.THREADS_MAX + 1

    asyncio.run(main())


def test_at_the_limit_nothing_more_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier, "WAITING_MAX", 4)
    monkeypatch.setattr(notifier, "THREADS_MAX", 1)
    kernel = Kernel()

    async def work(made: Notifier) -> None:
        kernel.free.clear()
        made.post(b"at work")
        assert kernel.most.acquire(timeout=SECONDS_MAX)
        assert [made.post(b"waiting") for _ in range(6)] == [True] * 4 + [False] * 2
        kernel.free.set()

    made = with_notifier(kernel, work)
    assert (made.sent, made.refused) == (5, 2)


def test_after_the_end_nobody_waits() -> None:
    async def work(made: Notifier) -> None:
        await made.close(SECONDS_MAX)
        await asyncio.wait_for(made.inode(5), SECONDS_MAX)
        assert not made.post(b"late")

    with_notifier(Kernel(), work)
