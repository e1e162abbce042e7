"""`emberfs mount`, `umount`, `up --mount`, mount.emberfs: as they are typed."""

from __future__ import annotations

import configparser
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from emberfs_mount import can_mount

import emberfs
from emberfs.deploy import mounts
from emberfs.deploy.local import LocalCluster
from emberfs.fuse import mounting

from .command import Command, Result

pytestmark = pytest.mark.skipif(not can_mount(), reason="mounting needs root and /dev/fuse")

MOUNT_FAILED = 32  # exit code of mount(8)
UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "emberfs-mount@.service"


@pytest.fixture(scope="module")
def run(cluster: LocalCluster) -> Command:
    return Command(cluster.environment)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount on; nothing is mounted there afterwards."""
    path = tmp_path / "with space"
    path.mkdir()
    yield path
    with contextlib.suppress(Exception):
        mounts.end(str(path))


def helper(cluster: LocalCluster, *arguments: str) -> Result:
    """mount.emberfs, as mount(8) calls it."""
    program = "import sys; from emberfs.deploy.cli.mount import helper; helper()"
    environment = {**os.environ, **cluster.environment}
    command = [sys.executable, "-P", "-c", program, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, env=environment, cwd="/", timeout=100)
    return Result(done.returncode, done.stdout, done.stderr.decode())


def test_mount_list_and_umount(run: Command, cluster: LocalCluster, place: Path) -> None:
    said = run("mount", str(place)).text
    assert f"is mounted on {place}" in said and "emberfs umount" in said
    (place / "seen").write_bytes(b"by everybody")
    with emberfs.connect(cluster.url) as client:
        assert client.read_bytes("/seen") == b"by everybody"
    [row] = [row for row in run("mount", "--json").json if row["path"] == str(place)]
    assert row["source"] == cluster.url and row["pid"] and Path(row["log"]).exists()
    assert row in run("status", "--json").json["mounts"]
    assert str(place) in run("mount").text and str(place) in run("status").text
    assert "is mounted on" in run.fail(1, "mount", str(place)), "already"
    run("umount", str(place))
    assert mounting.find(str(place)) is None
    assert "no emberfs is mounted" in run.fail(1, "umount", str(place))


def test_one_that_goes_on_in_another_mount_namespace_is_not_called_ended(
    run: Command, cluster: LocalCluster, place: Path
) -> None:
    """What a container holds is not flushed when umount has to return."""
    run("mount", str(place))
    [pid] = [row["pid"] for row in run("mount", "--json").json if row["path"] == str(place)]
    keep = 'mount --make-private "$1" && echo && read end'
    hold = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", keep, "sh", str(place)]
    with (
        os.fdopen(os.pidfd_open(pid)) as supervisor,
        subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container,
    ):
        assert container.stdin and container.stdout and container.stdout.readline() == b"\n"
        hasty = Command({**cluster.environment, "EMBERFS_TIME_SCALE": "0.001"})
        assert "other mount namespaces" in hasty("umount", str(place)).err
        assert mounting.find(str(place)) is None
        container.stdin.close()
        assert select.select([supervisor], [], [], 100)[0], "ends with its last user"


def test_a_directory_and_options(run: Command, cluster: LocalCluster, place: Path) -> None:
    with emberfs.connect(cluster.url) as client:
        client.mkdir("/sets/one", parents=True, exist_ok=True)
        client.write_bytes("/sets/one/file", b"12345")
    report = run("mount", "ember:///sets", str(place), "-o", "ro,noatime", "-o", "uid=1234,fsname=sets", "--json").json
    assert report["source"] == "sets"
    assert os.listdir(place) == ["one"] and (place / "one" / "file").stat().st_uid == 1234
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()
    run("umount", str(place))


def test_complaints(run: Command, place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "did you mean noatime?" in run.fail(1, "mount", str(place), "-o", "noatme")
    assert "make the directory first" in run.fail(1, "mount", str(tmp_path / "none"))
    assert "not a directory" in run.fail(1, "mount", str(tmp_path / "file"))
    assert "/nowhere of the cluster" in run.fail(1, "mount", "ember:///nowhere", str(place))
    assert "which directory" in run.fail(2, "mount", "ember:///")
    assert "ember:///a" in run.fail(2, "mount", "/a", str(place))
    assert "at most" in run.fail(2, "mount", "a", "b", "c")
    assert "secret_file=" in run.fail(1, "mount", str(place), "-o", "secret=x")
    assert "EMBERFS_SECRET_FILE" in run.fail(1, "mount", "ember://me:secret@host/", str(place))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
    assert "log:" in run.fail(3, "mount", f"ember://127.0.0.1:{port}/", str(place))
    assert mounting.find(str(place)) is None


def test_in_the_foreground_until_it_is_interrupted(cluster: LocalCluster, place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + f"emberfs-test-{os.getpid()}")
        environment = {**os.environ, **cluster.environment, "NOTIFY_SOCKET": f"@emberfs-test-{os.getpid()}"}
        command = [sys.executable, "-P", "-m", "emberfs", "mount", "--foreground", "-o", "", str(place)]
        with subprocess.Popen(command, env=environment, cwd="/", stderr=subprocess.PIPE, text=True) as process:
            assert select.select([systemd], [], [], 60)[0] and systemd.recv(100) == b"READY=1"
            (place / "file").write_bytes(b"x")
            process.send_signal(signal.SIGINT)
            assert systemd.recv(100) == b"STOPPING=1"
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0 and "mounted" in said
    assert mounting.find(str(place)) is None


def test_the_unit_of_systemd(cluster: LocalCluster, place: Path) -> None:
    """Its command, as systemd runs it; reloaded, and ended."""
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    assert unit.read(UNIT)
    words = {"${OPTIONS}": "noatime", "${URL}": cluster.url, "%f": str(place)}
    command = [words.get(word, word) for word in unit["Service"]["ExecStart"].split()]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + f"emberfs-unit-{os.getpid()}")
        environment = {**os.environ, "PATH": path, "NOTIFY_SOCKET": f"@emberfs-unit-{os.getpid()}"}
        with subprocess.Popen(command, env=environment, cwd="/", stderr=subprocess.PIPE, text=True) as process:
            assert select.select([systemd], [], [], 60)[0] and systemd.recv(100) == b"READY=1"
            (place / "file").write_bytes(b"x")
            assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
            process.send_signal(signal.SIGHUP)
            assert (place / "file").read_bytes() == b"x"
            process.terminate()
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert mounting.find(str(place)) is None


def test_what_mount_calls(cluster: LocalCluster, place: Path) -> None:
    assert helper(cluster, cluster.url, str(place), "-f", "-o", "rw").code == 0 and mounting.find(str(place)) is None
    assert (
        helper(cluster, cluster.url, str(place), "-n", "-o", "ro,_netdev,nofail,x-systemd.idle-timeout=1min").code == 0
    )
    found = mounting.find(str(place))
    assert found is not None and found.source == cluster.url and "ro" in found.options.split(",")
    again = helper(cluster, cluster.url, str(place))
    assert again.code == MOUNT_FAILED and "already" in again.err
    mounts.stop(str(place))
    assert helper(cluster, cluster.url, str(place), "-o", "foo").code == MOUNT_FAILED
    assert "usage" in helper(cluster, cluster.url).err and helper(cluster, "--bad", "a", "b").code == 1


def test_mount_itself(cluster: LocalCluster, place: Path, tmp_path: Path) -> None:
    """mount(8), with a line of fstab, calls ours, which it looks for in /sbin."""
    script = tmp_path / "mount.emberfs"
    script.write_text(
        f"#!/bin/sh\nexec {sys.executable} -P -c 'from emberfs.deploy.cli.mount import helper; helper()' \"$@\"\n"
    )
    script.chmod(0o755)
    target = Path("/sbin/mount.emberfs")
    if target.exists():
        pytest.skip("mounting needs root and /dev/fuse")  # and is installed here: nothing to stand in for
    target.symlink_to(script)
    try:
        fstab = tmp_path / "fstab"
        directory = str(place).replace(" ", "\\040")
        fstab.write_text(f"{cluster.url} {directory} emberfs _netdev,nofail,noatime 0 0\n")
        command = ["mount", "--fstab", str(fstab), str(place)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    finally:
        target.unlink()
    assert done.returncode == 0, done.stderr
    (place / "through mount").touch()
    subprocess.run(["umount", str(place)], check=True)


class TestOfACluster:
    def test_up_mounts_and_down_unmounts(self, tmp_path: Path) -> None:
        place = tmp_path / "m"
        place.mkdir()
        run = Command({"EMBERFS_DATA": str(tmp_path / "data"), "EMBERFS_URL": ""})
        try:
            assert run("up", "--mount", str(place), "--json").json["mounts"] == [str(place)]
            (place / "file").write_bytes(b"kept")
            assert run("up", "--mount", str(place), "--json").json["started"] is False
            with contextlib.suppress(OSError), open(place / "file", "rb"):  # in use: it cannot be closed any more
                run("down")
            assert mounting.find(str(place)) is None
            assert f"mounted on {place}" in run("up").text, "remembered"
            assert (place / "file").read_bytes() == b"kept"
            run("down")
            place.rename(tmp_path / "elsewhere")
            assert "make the directory first" in run.fail(1, "up"), "and the cluster runs"
            assert run("ls", "/").lines == ["file"]
            (tmp_path / "elsewhere").rename(place)
            run("up")
            run("umount", str(place))
            assert run("up", "--json").json["mounts"] == [], "forgotten"
        finally:
            run.any("down")

    def test_a_mount_of_a_killed_cluster_is_unmounted_by_down(self, fresh_cluster: LocalCluster, place: Path) -> None:
        mounts.start(fresh_cluster.url, str(place))
        fresh_cluster.kill()
        fresh_cluster.stop()
        assert mounting.find(str(place)) is None
