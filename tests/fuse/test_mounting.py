"""mount(2), fusermount3, mountinfo, and complaints that say what to do. No cluster: the kernel's first request is as far as it goes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from emberfs.fuse import mounting
from emberfs.fuse.options import MountOptions, parse
from emberfs.fuse.protocol import IN_HEADER, Opcode
from emberfs.proto.errors import Status, StatusError

from .users import User, acting

NOBODY = User(65534, 65534)  # fusermount3 wants a user that has a name
MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
41 27 0:39 / /mnt/with\\040space\\134and rw,nosuid,nodev shared:5 master:1 - fuse.emberfs ember://h/a\\040b rw,user_id=1000,group_id=7
43 27 0:40 / /mnt/x rw - fuse.emberfs none
44 27 0:41 / /mnt/x rw - ext4 /dev/sda1 rw
45 broken
"""

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="mounting needs root and /dev/fuse"
)


def refusal(status: Status, work: object, *arguments: object, **options: object) -> str:
    with pytest.raises(StatusError) as refused:
        work(*arguments, **options)  # type: ignore[operator]
    assert refused.value.status is status
    return str(refused.value.strerror)


def test_mountinfo_is_understood() -> None:
    proc, ours, bare, *_ = found = mounting.parse_mountinfo(MOUNTINFO)
    assert len(found) == 4 and not proc.ours and ours.ours
    assert (ours.device, ours.path, ours.source, ours.user) == (
        "0:39",
        "/mnt/with space\\and",
        "ember://h/a b",
        1000,
    )
    assert bare.source == "none" and bare.super_options == "" and bare.user == 0


def test_this_machine_s_mountinfo_is_understood() -> None:
    assert any(mount.path == "/proc" and mount.type == "proc" for mount in mounting.mounts())


def test_a_place_is_named_as_the_kernel_names_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real = os.path.realpath(tmp_path / "real")
    assert mounting.place_of(str(tmp_path / "link")) == mounting.place_of(f"{tmp_path}/real/../real/") == real
    assert mounting.place_of("/") == "/"


def test_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "make the directory first" in refusal(Status.NOT_FOUND, mounting.check_mountpoint, str(tmp_path / "none"))
    assert "not a directory" in refusal(Status.NOT_DIRECTORY, mounting.check_mountpoint, str(tmp_path / "file"))
    assert "no emberfs is mounted" in refusal(Status.NOT_FOUND, mounting.unmount, str(tmp_path))
    assert "no emberfs is mounted" in refusal(Status.NOT_FOUND, mounting.unmount, "/proc")


@contextlib.contextmanager
def device(path: Path, options: MountOptions) -> Iterator[int]:
    fd = mounting.mount(str(path), "ember://test:1/", options)
    try:
        yield fd
    finally:
        os.close(fd)
        with contextlib.suppress(StatusError):
            mounting.unmount(str(path), lazy=True)


def first_request(fd: int) -> int:
    """The opcode of what the kernel asks first."""
    assert select.select([fd], [], [], 60)[0]
    return int(IN_HEADER.unpack_from(os.read(fd, 1 << 21))[1])


@needs_root
def test_root_mounts(tmp_path: Path) -> None:
    with device(tmp_path, parse(["ro,noatime,noexec"]).for_user(0)) as fd:
        assert first_request(fd) == Opcode.INIT
        found = mounting.find(str(tmp_path))
        assert found is not None and found.ours and found.source == "ember://test:1/" and found in mounting.our_mounts()
        assert {"ro", "noatime", "noexec", "nosuid", "nodev"} <= set(found.options.split(","))
        assert {"allow_other", "default_permissions", "user_id=0"} <= set(found.super_options.split(","))
        assert mounting.raise_readahead(str(tmp_path), 4 << 20)
        assert Path(f"/sys/class/bdi/{found.device}/read_ahead_kb").read_text() == "4096\n"


@needs_root
def test_a_mount_without_a_daemon_is_replaced(tmp_path: Path) -> None:
    fd = mounting.mount(str(tmp_path), "ember://test:1/", MountOptions().for_user(0))
    os.close(fd)
    with pytest.raises(OSError, match="not connected"):
        os.stat(tmp_path)
    mounting.check_mountpoint(str(tmp_path))
    assert mounting.find(str(tmp_path)) is None


@needs_root
def test_whoever_keeps_a_mount_busy_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with device(tmp_path, MountOptions().for_user(0)) as fd:
        first_request(fd)
        with subprocess.Popen(["sleep", "60"], cwd="/proc/self") as idle:
            assert not list(mounting.users_of(str(tmp_path)))
            idle.kill()
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as busy:
        assert (busy.pid, "sleep") in list(mounting.users_of(str(tmp_path)))
        assert list(mounting.users_of(str(tmp_path / "x"))) == []
        busy.kill()


@pytest.fixture
def of_nobody(tmp_path: Path) -> Iterator[Path]:
    """A directory in which a user may mount, on a machine whose /dev/fuse is as udev makes it."""
    if os.geteuid():
        pytest.skip("only root becomes other users")
    if shutil.which("fusermount3") is None or not os.access("/dev/fuse", os.R_OK):
        pytest.skip("users mount with fusermount3 (package fuse3) and /dev/fuse")
    for folder in (tmp_path, *tmp_path.parents):
        if folder != Path("/") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o711)
    made = tmp_path / "of nobody"
    made.mkdir()
    os.chown(made, NOBODY.uid, NOBODY.gid)
    with open(Path(tempfile.gettempdir()) / "emberfs-test-device.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of other processes change the same device
        before = os.stat(mounting.DEVICE).st_mode
        os.chmod(mounting.DEVICE, before | 0o666)
        yield made
        os.chmod(mounting.DEVICE, before)
    if mounting.find(str(made)) is not None:
        mounting.unmount(str(made), lazy=True)


def test_a_user_mounts_with_fusermount(of_nobody: Path) -> None:
    def work() -> tuple[int, str, str, str, bool]:
        fd = mounting.mount(str(of_nobody), "ember://test:1/a,b", parse(["noatime,noexec"]).for_user(NOBODY.uid))
        opcode = first_request(fd)
        found = mounting.find(str(of_nobody))
        assert found is not None
        raised = mounting.raise_readahead(str(of_nobody), 4 << 20)
        mounting.unmount(str(of_nobody))
        return opcode, found.source, found.options, found.super_options, raised

    opcode, source, options, super_options, raised = acting(NOBODY, work)
    assert opcode == Opcode.INIT and source == "ember://test:1/a,b"
    assert {"noatime", "noexec", "nosuid", "nodev"} <= set(options.split(","))
    assert f"user_id={NOBODY.uid}" in super_options and "allow_other" not in super_options
    assert raised is False, "only root may"
    assert mounting.find(str(of_nobody)) is None


def test_a_user_hears_why_not(of_nobody: Path) -> None:
    def others() -> str:
        return refusal(
            Status.NOT_PERMITTED, mounting.mount, str(of_nobody), "ember://test:1/", parse(["allow_other"]).for_user(1)
        )

    def elsewhere() -> str:
        return refusal(Status.PERMISSION_DENIED, mounting.check_mountpoint, "/usr")

    if "\nuser_allow_other" not in Path("/etc/fuse.conf").read_text():
        assert "/etc/fuse.conf" in acting(NOBODY, others)
    assert "may not write" in acting(NOBODY, elsewhere)


def test_without_the_device_it_says_what_a_container_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "DEVICE", "/dev/no-fuse-here")
    assert "modprobe fuse" in refusal(Status.UNSUPPORTED, mounting.open_device)


def test_importing_costs_little() -> None:
    """The supervisor is a process for each mount: it must not load the client."""
    program = (
        "import sys, emberfs.fuse.supervisor; print(sorted(m for m in sys.modules if 'uvloop' in m or 'client' in m))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
