"""Memory in all the forms that engines keep it in: what is found to be shared, what is not, and what is refused."""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from multiprocessing import shared_memory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emberfs.kvcache.buffers import Registry
from emberfs.kvcache.memory import _memory_devices, backing_of
from emberfs.kvcache.places import places_of

PAGE = 4096


@pytest.fixture
def registry() -> Any:
    gone: list[Any] = []

    def unregister(region: Any) -> None:
        gone.append(region)
        if region.fd >= 0:
            os.close(region.fd)
            region.fd = -1

    made = Registry(unregister)
    yield made
    made.close()


def memfd(size: int = 4 * PAGE) -> tuple[int, mmap.mmap]:
    """Shared memory as SGLang's allocator makes it: without leave to seal."""
    descriptor = os.memfd_create("engine")
    os.ftruncate(descriptor, size)
    return descriptor, mmap.mmap(descriptor, size)


def test_an_engines_memfd_is_found_and_shared(registry: Registry) -> None:
    descriptor, memory = memfd()
    pool = np.frombuffer(memory, "u1")
    buffer = registry.register(pool[100:9000])
    assert buffer.shared
    assert (buffer.start, buffer.nbytes) == (100, 8900)
    assert not buffer.region.sealed
    pool[100] = 7
    assert buffer.region.view[100] == 7, "the region is the same memory"
    os.close(descriptor)


def test_two_halves_of_one_pool_are_one_region(registry: Registry) -> None:
    descriptor, memory = memfd()
    pool = np.frombuffer(memory, "u1")
    first, second = registry.register(pool[:PAGE]), registry.register(pool[PAGE:])
    assert first.region is second.region
    registry.unregister(first)
    assert second.shared
    registry.unregister(second)
    assert not second.shared
    registry.unregister(second)
    os.close(descriptor)


def test_a_file_on_tmpfs_that_was_unlinked(registry: Registry) -> None:
    """vLLM's: unlinked once all workers have it, but the descriptor stays."""
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(2 * PAGE)
        memory = mmap.mmap(file.fileno(), 2 * PAGE)
        assert registry.register(memory).shared


def test_shared_memory_of_multiprocessing(registry: Registry) -> None:
    block = shared_memory.SharedMemory(create=True, size=PAGE)
    try:
        buffer = registry.register(block.buf)
        assert buffer.shared
        registry.unregister(buffer)
        del buffer
    finally:
        block.unlink()


def test_memory_by_its_address(registry: Registry) -> None:
    descriptor, memory = memfd()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    buffer = registry.register((address + 8, 64))
    assert buffer.shared
    assert buffer.start == 8
    os.close(descriptor)


class Tensor:
    """What of torch's interface is used, over an array: the engines' own tests have the real one."""

    def __init__(self, array: Any, device: str = "cpu") -> None:
        self._array = array
        self.device = SimpleNamespace(type=device)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def numel(self) -> int:
        return int(self._array.size)

    def element_size(self) -> int:
        return int(self._array.itemsize)

    def is_contiguous(self) -> bool:
        return bool(self._array.flags.c_contiguous)


def test_a_tensor(registry: Registry) -> None:
    array = np.zeros((3, 7), "u2")
    buffer = registry.register(Tensor(array))
    assert (buffer.nbytes, buffer.shared) == (42, False)
    buffer.view[0:2] = b"\x80\x3f"
    assert array[0, 0] == 0x3F80
    places = places_of([Tensor(array[1])], 1, registry, writable=True)
    assert places.lengths == [14]
    with pytest.raises(ValueError, match="not contiguous"):
        registry.register(Tensor(array[:, 1:3]))
    with pytest.raises(ValueError, match="pinned memory"):
        registry.register(Tensor(array, "cuda"))


@pytest.mark.parametrize("make", [lambda: bytearray(PAGE), lambda: np.zeros(PAGE, "f4"), lambda: mmap.mmap(-1, PAGE)])
def test_private_memory_is_registered_too(registry: Registry, make: Any) -> None:
    buffer = registry.register(make())
    assert buffer.nbytes in (PAGE, 4 * PAGE)
    buffer.view[:1] = b"x"


def test_a_file_on_a_disk_is_not_shared(registry: Registry, tmp_path: Any) -> None:
    """Wherever temporary files are, they are taken for what they are."""
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(PAGE)
        memory = mmap.mmap(file.fileno(), PAGE)
        assert registry.register(memory).shared == (os.fstat(file.fileno()).st_dev in _memory_devices())
        private = mmap.mmap(file.fileno(), PAGE, flags=mmap.MAP_PRIVATE)
        assert not registry.register(private).shared


def test_a_pool_of_two_files_is_not_shared(registry: Registry) -> None:
    """A region is one file: what lies across two is copied."""
    descriptor, memory = memfd()
    other, _ = memfd()
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    mapped = libc.mmap(ctypes.c_void_p(address + PAGE), PAGE, 3, 0x11, other, 0)  # MAP_FIXED | MAP_SHARED
    assert mapped == address + PAGE
    assert not registry.register(memory).shared
    assert backing_of(address, PAGE) is not None
    os.close(descriptor)
    os.close(other)


def test_allocated_memory_is_sealed(registry: Registry) -> None:
    buffer = registry.allocate(3 * PAGE)
    assert buffer.shared
    assert buffer.region.sealed
    assert buffer.array.shape == (3 * PAGE,)
    buffer.array[5] = 9
    assert buffer.view[5] == 9


def test_dead_memory_lives_again_when_it_is_registered_anew(registry: Registry) -> None:
    descriptor, memory = memfd()
    old = registry.register(memory)
    old.region.dead = True
    assert old.dead
    new = registry.register(memory)
    assert not new.dead
    assert new.shared
    os.close(descriptor)


def test_dead_memory_is_let_go_when_all_of_it_is_registered_anew(registry: Registry) -> None:
    descriptor, memory = memfd()
    halves = memoryview(memory)[: 2 * PAGE], memoryview(memory)[2 * PAGE :]
    first, second = map(registry.register, halves)
    for _ in range(5):
        old = first.region
        old.dead = True
        first = registry.register(halves[0])
        assert old.fd >= 0, "the other half is still in it"
        second = registry.register(halves[1])
        assert old.fd < 0
        assert first.region is second.region and first.shared and not first.dead
    registry.unregister(first)
    registry.unregister(second)
    assert not first.shared
    os.close(descriptor)


@pytest.mark.parametrize(
    ("bad", "failure"),
    [(b"bytes", ValueError), (3, TypeError), ("text", TypeError), ((0, 5), ValueError), (bytearray(), ValueError)],
    ids=str,
)
def test_what_is_no_memory(registry: Registry, bad: Any, failure: type[Exception]) -> None:
    with pytest.raises(failure):
        registry.register(bad)


def test_places_of_slots(registry: Registry) -> None:
    buffer = registry.allocate(10 * PAGE)
    places = places_of((buffer, np.array([0, PAGE]), 100), 2, registry, writable=True)
    assert places.lengths == [100, 100]
    assert places.slices(1, True) == ((buffer.region, PAGE, 100),)
    split = places_of((buffer, [[0, PAGE], [100, PAGE + 100]], 100), 2, registry, writable=True)
    assert split.lengths == [200, 200]
    assert split.slices(1, True) == [(buffer.region, 100, 100), (buffer.region, PAGE + 100, 100)]
    assert [len(view) for view in split.views(0)] == [100, 100]


def test_places_find_registered_memory_by_its_address(registry: Registry) -> None:
    buffer = registry.allocate(10 * PAGE)
    registry.allocate(PAGE)
    pool = buffer.array.reshape(10, PAGE)
    places = places_of([pool[3], [pool[4][:10], pool[9][10:30]], bytearray(5)], 3, registry, writable=True)
    assert places.lengths == [PAGE, 30, 5]
    assert places.slices(0, True) == [(buffer.region, 3 * PAGE, PAGE)]
    assert places.slices(1, True) == [(buffer.region, 4 * PAGE, 10), (buffer.region, 9 * PAGE + 10, 20)]
    assert places.slices(2, True) is None
    inline = places.slices(2, False)
    assert inline is not None
    assert inline[0].view.nbytes == 5
    buffer.region.dead = True
    assert places.dead_rows([0, 1, 2]) == [0, 1]


def test_a_part_that_is_registered_hides_nothing_of_the_whole(registry: Registry) -> None:
    """Neither that servers reach it, nor that it is dead."""
    whole = registry.allocate(10 * PAGE)
    part, last = registry.register(whole.view[PAGE : 3 * PAGE]), registry.register(whole.view[9 * PAGE :])
    for first, end, found in ((0, 1, whole), (1, 2, part), (1, 3, part), (2, 4, whole), (5, 6, whole), (9, 10, last)):
        assert registry.find(whole.address + first * PAGE, (end - first) * PAGE) is found
    assert registry.find(whole.address + 9 * PAGE, 2 * PAGE) is None
    places = places_of([whole.view[5 * PAGE : 6 * PAGE]], 1, registry, writable=True)
    assert places.slices(0, True) == [(whole.region, 5 * PAGE, PAGE)]
    whole.region.dead = True
    assert places.dead_rows([0]) == [0]
    assert part.dead, "it is the same memory"
    registry.unregister(whole)
    assert registry.find(whole.address, PAGE) is None
    assert registry.find(whole.address + PAGE, PAGE) is part


@pytest.mark.parametrize("part_first", [False, True])
def test_nor_does_the_part_that_it_begins_with(registry: Registry, part_first: bool) -> None:
    """The first layer of a pool lies where the pool does."""
    descriptor, memory = memfd(4 * PAGE)
    part_of = memoryview(memory)[:PAGE]
    if part_first:
        part, whole = registry.register(part_of), registry.register(memory)
    else:
        whole, part = registry.register(memory), registry.register(part_of)
    assert registry.find(whole.address + PAGE, PAGE) is whole
    assert registry.find(whole.address, 2 * PAGE) is whole
    assert registry.find(whole.address, PAGE) is (whole if part_first else part), "the newer one"
    whole.region.dead = True
    places = places_of([memoryview(memory)[2 * PAGE :]], 1, registry, writable=True)
    assert places.dead_rows([0]) == [0]
    region = whole.region
    registry.unregister(part)
    registry.unregister(whole)
    assert region.fd < 0, "nobody holds it any more"
    os.close(descriptor)


@pytest.mark.parametrize(
    ("memory", "failure"),
    [
        ([bytearray(1)], ValueError),
        ([b"read-only", bytearray(1)], ValueError),
        ([1, 2], TypeError),
        (bytearray(10), TypeError),
        ((bytearray(10), [0]), TypeError),
        ((bytearray(10), [0], 4), ValueError),
        ((bytearray(10), [0, 8], 4), ValueError),
        ((bytearray(10), [0, -1], 4), ValueError),
        ((bytearray(10), [0, 1], [4]), ValueError),
        ((bytearray(10), [0, 1], -4), ValueError),
        ((b"read-only", [0, 1], 4), ValueError),
        ([np.zeros((4, 4))[:, 1], bytearray(1)], ValueError),
    ],
    ids=str,
)
def test_memory_that_does_not_fit_is_refused(registry: Registry, memory: Any, failure: type[Exception]) -> None:
    with pytest.raises(failure):
        places_of(memory, 2, registry, writable=True)


def test_sources_may_be_read_only(registry: Registry) -> None:
    assert places_of([b"abc", b"defg"], 2, registry, writable=False).lengths == [3, 4]
    assert places_of((b"abcdef", [0, 3], 3), 2, registry, writable=False).views(1)[0] == b"def"
