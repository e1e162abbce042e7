"""One file, several threads that seek and read: duckdb does that with every fsspec file."""

import os
import random
import signal
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from emberfs.client import blocking
from emberfs.client.filesystem import EmberFileSystem


@pytest.fixture
def fs(cluster):
    return fsspec.filesystem("ember", **cluster.storage_options)


@pytest.fixture
def root(fs):
    path = f"/threads-{uuid.uuid4().hex}"
    fs.mkdir(path)
    return path


def test_seek_and_read_belong_together(fs, root):
    content = os.urandom(5_000_000)
    fs.pipe_file(f"{root}/shared", content)
    with fs.open(f"{root}/shared") as file, ThreadPoolExecutor(4) as pool:

        def look(seed: int) -> bool:
            choose = random.Random(seed)
            for _ in range(40):
                begin, length = choose.randrange(len(content)), choose.choice((100, 5_000, 700_000))
                file.seek(begin)
                if (
                    file.read(length) != content[begin : begin + length]
                    or file.read(10) != content[begin + length :][:10]
                ):
                    return False
            return True

        assert all(pool.map(look, range(4)))


def test_a_thread_that_did_not_seek_reads_on(fs, root):
    """The header is read here, the rest by a worker, the end here again: one position, as with any file."""
    fs.pipe_file(f"{root}/handed-over", bytes(range(100)))
    with fs.open(f"{root}/handed-over") as file, ThreadPoolExecutor(1) as pool:
        file.seek(10)
        assert file.read(10) == bytes(range(10, 20))
        assert pool.submit(file.read, 30).result() == bytes(range(20, 50))
        assert file.tell() == 50 and file.read(5) == bytes(range(50, 55))
        file.seek(-5, 1)
        assert file.read(1) == bytes([50])


class Connected:
    closed = False

    def close(self) -> None:
        self.closed = True


def test_a_child_that_is_forked_while_a_thread_connects(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def connect(url):
        begun.set()
        assert go_on.wait(30)
        return Connected()

    monkeypatch.setattr(blocking, "connect", connect)
    fs = EmberFileSystem(skip_instance_cache=True)
    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(lambda: fs.client) for _ in range(2)]
        assert begun.wait(30)
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # ends a child that waits for what only its parent's threads would do
            blocking.connect = lambda url: Connected()
            try:
                os._exit(not isinstance(fs.client, Connected))
            finally:
                os._exit(2)
        assert os.waitpid(pid, 0)[1] == 0
        go_on.set()
    assert {client.result() for client in clients} == {fs.client}
    assert not fs.client.closed
