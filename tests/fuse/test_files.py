"""Open files on a real mount, and on the local file system beside it: what is expected is what Linux does."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .users import ALICE, acting, errno_of, link_open

KIB, MIB = 1 << 10, 1 << 20
O_TMPFILE = os.O_TMPFILE
PUNCH_HOLE, KEEP_SIZE, ZERO_RANGE, COLLAPSE_RANGE, INSERT_RANGE = 0x02, 0x01, 0x10, 0x08, 0x20


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), of which Python has only one mode."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
    if libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def pattern(length: int, seed: int = 0) -> bytes:
    """Bytes that differ from place to place."""
    return b"".join(((i * 2654435761 + seed) & 0xFFFFFFFF).to_bytes(4, "little") for i in range((length + 3) // 4))[
        :length
    ]


# --- reading and writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000, 3 * MIB + 17])
def test_what_was_written_is_read_while_it_is_open_and_afterwards(both: Path, size: int) -> None:
    data = pattern(size)
    with (both / "file").open("w+b", buffering=0) as file:
        assert file.write(data) == size
        assert os.fstat(file.fileno()).st_size == size
        assert os.pread(file.fileno(), size + 1, 0) == data
    assert (both / "file").read_bytes() == data
    assert (both / "file").stat().st_size == size


def test_a_write_is_seen_through_every_descriptor_at_once(both: Path) -> None:
    path = both / "file"
    path.write_bytes(pattern(2 * MIB))
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_WRONLY)
    try:
        for offset in (0, 4000, MIB - 3, 2 * MIB):
            os.pwrite(writer, b"written", offset)
            assert os.pread(reader, 7, offset) == b"written"
        assert os.fstat(reader).st_size == path.stat().st_size == 2 * MIB + 7
    finally:
        os.close(reader)
        os.close(writer)


def test_a_descriptor_that_was_closed_elsewhere_goes_on_writing(both: Path) -> None:
    fd = os.open(both / "file", os.O_CREAT | os.O_RDWR)
    for i in range(4):  # each close sends and settles what is there; the next write begins anew
        os.pwrite(fd, b"%d" % i * 5000, 5000 * i)
        os.close(os.dup(fd))
        assert (both / "file").stat().st_size == 5000 * (i + 1)
    os.close(fd)
    assert (both / "file").read_bytes() == b"".join(b"%d" % i * 5000 for i in range(4))


def test_a_file_without_a_name_outlives_the_close_of_a_duplicate(both: Path) -> None:
    fd = os.open(both / "file", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"first")
    os.unlink(both / "file")
    os.close(os.dup(fd))
    os.write(fd, b", second")
    assert os.pread(fd, 100, 0) == b"first, second"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_truncate_through_the_descriptor_and_by_name(both: Path) -> None:
    path = both / "file"
    data = pattern(2 * MIB + 100)
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    os.write(fd, data)
    os.ftruncate(fd, MIB + 50)
    assert os.pread(fd, 3 * MIB, 0) == data[: MIB + 50]
    os.truncate(path, 10)
    assert os.pread(fd, 100, 0) == data[:10]
    os.ftruncate(fd, 20)
    assert os.pread(fd, 100, 0) == data[:10] + bytes(10)
    os.pwrite(fd, b"x", 30)
    assert os.pread(fd, 100, 0) == data[:10] + bytes(20) + b"x"
    os.close(fd)
    assert path.stat().st_size == 31


def test_o_trunc_empties_and_goes_on(both: Path) -> None:
    path = both / "file"
    path.write_bytes(pattern(100_000))
    with path.open("r+b", buffering=0) as other:
        other.write(b"dirty")
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        assert os.fstat(other.fileno()).st_size == 0
        os.write(fd, b"new")
        os.close(fd)
        assert os.pread(other.fileno(), 100, 0) == b"new"
    assert path.read_bytes() == b"new"


def test_append_goes_to_the_end_whoever_else_writes(both: Path) -> None:
    path = both / "log"
    first = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    second = os.open(path, os.O_RDWR | os.O_APPEND)
    for i in range(10):
        os.write(first, b"a%d\n" % i)
        os.write(second, b"b%d\n" % i)
    assert os.pread(second, 1000, 0) == b"".join(b"a%d\nb%d\n" % (i, i) for i in range(10))
    os.close(first)
    os.close(second)
    assert path.stat().st_size == 60


def test_a_descriptor_that_appends_no_more_writes_where_it_is_told(both: Path) -> None:
    path = both / "log"
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)
    os.write(fd, b"0123456789")
    _append(fd, False)
    assert os.pwrite(fd, b"AB", 2) == 2
    os.lseek(fd, 5, os.SEEK_SET)
    os.write(fd, b"CD")
    assert os.pread(fd, 20, 0) == path.read_bytes() == b"01AB4CD789"
    _append(fd, True)
    os.pwrite(fd, b"E", 0)
    _append(fd, False)
    assert os.copy_file_range(fd, fd, 2, 0, 4) == 2
    assert path.read_bytes() == b"01AB01D789E"
    os.close(fd)


def test_a_descriptor_that_is_told_later_to_append(both: Path) -> None:
    path = both / "log"
    fd, other = (os.open(path, os.O_CREAT | os.O_RDWR) for _ in range(2))
    _append(fd, True)
    os.write(other, b"0123456789")
    os.write(fd, b"AB")
    os.write(other, b"CDE")
    os.pwrite(fd, b"F", 0)
    assert path.read_bytes() == b"0123456789CDEF"
    os.close(fd)
    os.close(other)


def _append(fd: int, on: bool) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND if on else flags & ~os.O_APPEND)


def test_synchronous_and_direct_descriptors(both: Path) -> None:
    for number, flags in enumerate((os.O_SYNC, os.O_DSYNC, os.O_DIRECT)):
        path = both / f"file{number}"
        fd = os.open(path, os.O_CREAT | os.O_RDWR | flags)
        import mmap

        buffer = mmap.mmap(-1, 8192)  # aligned, as O_DIRECT wants it
        buffer.write(pattern(8192))
        assert os.pwritev(fd, [buffer], 0) == 8192
        again = mmap.mmap(-1, 8192)
        assert os.preadv(fd, [again], 0) == 8192
        assert again[:] == buffer[:]
        os.close(fd)
        assert path.read_bytes() == buffer[:]


def test_reads_of_all_sizes_in_sequence_and_elsewhere(place: Path) -> None:
    data = pattern(5 * MIB + 777)
    (place / "file").write_bytes(data)
    fd = os.open(place / "file", os.O_RDONLY)
    for size in (1000, 4096, 65_536, 131_072, MIB, 3 * MIB):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        got = b"".join(iter(lambda size=size: os.read(fd, size), b""))  # type: ignore[misc]
        assert got == data
        os.lseek(fd, 0, os.SEEK_SET)
    for offset in range(0, len(data), 333_333):
        assert os.pread(fd, 50_000, offset) == data[offset : offset + 50_000]
    os.close(fd)


def test_wrong_access_modes_and_arguments(both: Path) -> None:
    path = both / "file"
    path.write_bytes(b"x")
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_WRONLY)
    assert errno_of(lambda: os.write(reader, b"x")) == errno.EBADF
    assert errno_of(lambda: os.read(writer, 1)) == errno.EBADF
    assert errno_of(lambda: os.ftruncate(reader, 0)) == errno.EINVAL
    assert errno_of(lambda: os.pwrite(writer, b"x", -1)) == errno.EINVAL
    assert errno_of(lambda: os.open(path, os.O_CREAT | os.O_EXCL)) == errno.EEXIST
    assert errno_of(lambda: os.open(both / "none", os.O_RDONLY)) == errno.ENOENT
    assert errno_of(lambda: os.open(both, os.O_WRONLY)) == errno.EISDIR
    os.close(reader)
    os.close(writer)


# --- making -------------------------------------------------------------------------------------------------------------------------


def test_a_temporary_file_gets_a_name_later(both: Path) -> None:
    fd = os.open(both, O_TMPFILE | os.O_RDWR, 0o640)
    os.write(fd, b"content")
    assert os.fstat(fd).st_nlink == 0
    assert list(both.iterdir()) == []
    link_open(fd, both / "named")
    os.close(fd)
    assert (both / "named").read_bytes() == b"content"
    assert (both / "named").stat().st_nlink == 1


def test_an_exclusive_temporary_file_gets_no_name(both: Path) -> None:
    fd = os.open(both, O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    assert errno_of(lambda: link_open(fd, both / "named")) == errno.ENOENT
    os.close(fd)


def test_the_umask_and_a_mode_that_forbids_its_maker(both: Path) -> None:
    def work() -> tuple[int, bytes]:
        os.umask(0o027)
        fd = os.open(both / "file", os.O_CREAT | os.O_RDWR, 0o666)
        readonly = os.open(both / "readonly", os.O_CREAT | os.O_WRONLY, 0o400)
        os.write(readonly, b"written all the same")
        os.close(readonly)
        os.close(fd)
        return (both / "file").stat().st_mode & 0o7777, (both / "readonly").read_bytes()

    assert acting(ALICE, work) == (0o640, b"written all the same")


def test_a_strangers_write_takes_set_ids_away(both: Path) -> None:
    path = both / "program"
    path.write_bytes(b"old")
    path.chmod(0o6777)

    def work() -> int:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"new")
        mode = os.fstat(fd).st_mode & 0o7777
        os.close(fd)
        return mode

    assert acting(ALICE, work) == 0o777
    assert path.stat().st_mode & 0o7777 == 0o777


def test_a_program_on_the_mount_runs_for_those_who_may_not_read_it(both: Path) -> None:
    path = both / "program"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o711)

    def work() -> int:
        return subprocess.run([path], check=False).returncode

    assert acting(ALICE, work) == 0


# --- holes, room, copies ------------------------------------------------------------------------------------------------------------


def test_a_sparse_file_has_zeros_where_nothing_was_written(place: Path) -> None:
    path = place / "sparse"
    with path.open("wb", buffering=0) as file:
        os.pwrite(file.fileno(), b"far", 5 * MIB)
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        assert os.pread(fd, MIB, 2 * MIB) == bytes(MIB)
        assert os.pread(fd, 10, 5 * MIB) == b"far"
        assert os.lseek(fd, 0, os.SEEK_DATA) == 5 * MIB
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.lseek(fd, 5 * MIB, os.SEEK_HOLE) == 5 * MIB + 3
        assert errno_of(lambda: os.lseek(fd, 5 * MIB + 3, os.SEEK_DATA)) == errno.ENXIO


def test_fallocate_makes_room_holes_and_zeros(both: Path) -> None:
    path = both / "file"
    data = bytearray(pattern(3 * MIB))
    path.write_bytes(data)
    fd = os.open(path, os.O_RDWR)
    assert os.pread(fd, 3 * MIB, 0) == data  # in the kernel's pages
    fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 5000, MIB)
    data[5000 : 5000 + MIB] = bytes(MIB)
    assert os.pread(fd, 4 * MIB, 0) == data
    fallocate(fd, ZERO_RANGE | KEEP_SIZE, 2 * MIB, 5 * MIB)
    data[2 * MIB :] = bytes(MIB)
    assert os.pread(fd, 4 * MIB, 0) == data
    fallocate(fd, ZERO_RANGE, 3 * MIB - 5, 10)
    assert os.fstat(fd).st_size == 3 * MIB + 5
    fallocate(fd, 0, 0, 4 * MIB)
    assert os.pread(fd, 5 * MIB, 0) == bytes(data) + bytes(MIB)
    assert errno_of(lambda: fallocate(fd, PUNCH_HOLE, 0, 10)) == errno.EOPNOTSUPP
    assert errno_of(lambda: fallocate(fd, 0, 0, 0)) == errno.EINVAL
    os.close(fd)


@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE])
def test_fallocate_that_moves_data_is_not_supported(place: Path, mode: int) -> None:
    with (place / "file").open("wb", buffering=0) as file:
        file.write(bytes(MIB))
        assert errno_of(lambda: fallocate(file.fileno(), mode, 0, 4096)) == errno.EOPNOTSUPP


def test_copy_file_range_within_and_between_files(both: Path) -> None:
    data = pattern(3 * MIB)
    source = os.open(both / "source", os.O_CREAT | os.O_RDWR)
    target = os.open(both / "target", os.O_CREAT | os.O_RDWR)
    os.write(source, data)  # not sent anywhere yet
    done = 0
    while done < len(data):
        done += os.copy_file_range(source, target, len(data) - done, done, done + 100)
    assert os.pread(target, 4 * MIB, 0) == bytes(100) + data
    assert os.copy_file_range(source, source, 5000, 0, 2 * MIB) == 5000
    assert os.pread(source, 5000, 2 * MIB) == data[:5000]
    assert errno_of(lambda: os.copy_file_range(source, source, 5000, 0, 1000)) == errno.EINVAL
    assert os.copy_file_range(source, target, 100, 3 * MIB, 0) == 0
    os.close(source)
    os.close(target)


def test_an_offset_that_no_file_can_have(place: Path) -> None:
    fd = os.open(place / "file", os.O_CREAT | os.O_RDWR)
    assert errno_of(lambda: os.pwrite(fd, b"x", (1 << 63) - 2)) == errno.EFBIG
    os.close(fd)


# --- mappings -----------------------------------------------------------------------------------------------------------------------

MAPPING = """
import mmap, os, sys
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
shared = mmap.mmap(fd, 0)
private = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE)
assert shared[:5] == private[:5] == b"first", shared[:5]
private[0:5] = b"mine!"
assert shared[:5] == b"first"
shared[100_000:100_004] = b"here"
shared.flush()
assert os.pread(fd, 4, 100_000) == b"here"
os.pwrite(fd, b"there", 200_000)
assert shared[200_000:200_005] == b"there"
os.close(fd)
shared[0:5] = b"again"
shared.close()
assert os.stat(path).st_size == 300_000
print(open(path, "rb").read(5))
"""


def test_mappings_shared_and_private(both: Path) -> None:
    path = both / "file"
    path.write_bytes(b"first" + bytes(299_995))
    done = subprocess.run(
        [sys.executable, "-c", MAPPING, path], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout == "b'again'\n", done.stderr
    content = path.read_bytes()
    assert (content[:5], content[100_000:100_004], content[200_000:200_005]) == (b"again", b"here", b"there")
