"""Copying files when the cluster does not answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import emberfs
from emberfs.client.blocking import Client
from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.deploy.cli import listing
from emberfs.deploy.cli.output import Failed
from emberfs.deploy.copying import (
    IN_VAIN_MAX,
    Copy,
    Get,
    Item,
    Plan,
    Progress,
    Put,
    Quiet,
    carry_out,
    plan_remote,
    whole_or_gone,
)
from emberfs.deploy.local import LocalCluster
from emberfs.proto.drivers.blocking import BlockingEnvironment
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, error
from emberfs.proto.settings import parse_url

from .room import at_most

FILES = 100


class Silent(Put):
    """Files get no answer, but for every `answered`th."""

    answered = 0
    tried = 0

    def file(self, item: Item, progress: Progress) -> None:
        self.tried += 1
        if not self.answered or item.size % self.answered:
            raise error(Status.DEADLINE, "gave up after 30 s")


def files() -> Plan:
    return Plan(files=[Item(f"/here/{i}", f"/there/{i}", size=i) for i in range(FILES)])


def test_after_some_files_in_vain_the_rest_is_not_tried(cluster: LocalCluster) -> None:
    with emberfs.connect(cluster.url) as client:
        way = Silent(client)
        failures = carry_out(files(), way)
    assert len(failures) == IN_VAIN_MAX + 1 and way.tried < FILES
    assert failures[-1] == f"no answer for {IN_VAIN_MAX} files in a row: the rest was not tried"


def test_where_some_get_an_answer_all_are_tried(cluster: LocalCluster) -> None:
    """One chain of several is out: what lies on the others is copied."""
    with emberfs.connect(cluster.url) as client:
        way = Silent(client)
        way.answered = 2
        failures = carry_out(files(), way, jobs=1)
    assert way.tried == FILES and len(failures) == FILES // 2


class Interrupted(BaseException):
    """As KeyboardInterrupt, which pytest keeps for itself."""


def test_who_is_interrupted_waits_for_no_file_and_leaves_no_half_ones(cluster: LocalCluster) -> None:
    """Two files without an end are on their way when Ctrl-C comes: both end at their next block."""
    plan = Plan(files=[Item("/dev/zero", f"/half-{name}") for name in ("a", "b", "failing")])
    begun, resumed = threading.Barrier(3), threading.Event()

    class Slow(Quiet):
        def add(self, size: int) -> None:
            if not resumed.is_set():
                begun.wait()
                assert resumed.wait(60)

    class Failing(Put):
        def file(self, item: Item, progress: Progress) -> None:
            if not item.target.endswith("failing"):
                return super().file(item, progress)
            begun.wait()  # the others have written a block each
            resumed.set()
            raise Interrupted

    with emberfs.connect(cluster.url) as client:
        with pytest.raises(Interrupted):
            carry_out(plan, Failing(client), progress=Slow())
        assert [name for name in client.listdir("/") if name.startswith("half-")] == []


def test_what_cannot_be_written_to_its_end_is_removed(cluster: LocalCluster) -> None:
    with emberfs.connect(cluster.url) as client:
        with (
            pytest.raises(ZeroDivisionError),
            whole_or_gone(client, "/half", lambda: client.open("/half", "wb")) as file,
        ):
            file.write(bytes(1 << 20))
            _ = 1 // 0
        assert not client.exists("/half")


def test_half_a_file_is_removed_where_a_symlink_led_to_it(cluster: LocalCluster) -> None:
    """The file, and not the symlink, which would leave the half of it under its own name."""
    with emberfs.connect(cluster.url) as client:
        client.mkdir("/behind")
        client.symlink("behind/second", "/first")
        client.symlink("../behind/half", "/behind/second")
        with (
            pytest.raises(ZeroDivisionError),
            whole_or_gone(client, "/first", lambda: client.open("/first", "wb")) as file,
        ):
            file.write(bytes(1 << 20))
            _ = 1 // 0
        assert client.listdir("/behind") == ["second"]
        assert client.stat("/first", follow=False).is_symlink


def test_a_disk_that_is_full_before_the_end_gets_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    """Also where it is full within the last block, of which the kernel takes a part without an error."""
    with emberfs.connect(cluster.url) as client:
        with client.open("/too-large", "wb") as file:
            file.write(bytes(3 << 20))
        plan = Plan(files=[Item("/too-large", str(tmp_path / "here"), 3 << 20)])
        with at_most(1 << 20):
            [failure] = carry_out(plan, Get(client))
        assert "File too large" in failure
        assert list(tmp_path.iterdir()) == []


def test_a_copy_of_what_cannot_be_read_leaves_its_target_alone(cluster: LocalCluster) -> None:
    """As of a file that somebody removes while others are copied."""
    plan = Plan(files=[Item("/removed-meanwhile", "/precious")])
    with emberfs.connect(cluster.url) as client:
        with client.open("/precious", "wb") as file:
            file.write(b"content")
        assert len(carry_out(plan, Copy(client))) == 1
        with client.open("/precious") as file:
            assert file.read() == b"content"


@contextmanager
def somebody(cluster: LocalCluster) -> Iterator[Client]:
    """A client whose calls are those of a user who is neither root nor owns anything."""
    location = parse_url(cluster.url)
    env = BlockingEnvironment(cluster=location.cluster, secret_file=location.secret_file, acts_for_others=True)
    core = Core(env, location.addresses, Options(name="test"), 0o22)
    drive(core.connect())
    view: Any = core.acting_for(4321, 4321)
    yield Client(view)
    Client(core).close()


def test_a_directory_that_may_not_be_read_is_not_left_out_in_silence(cluster: LocalCluster) -> None:
    """All of it looks copied, and counted, otherwise."""
    with emberfs.connect(cluster.url) as client:
        for name in ("/mixed/open", "/mixed/private/below"):
            client.mkdir(name, parents=True)
        for name in ("/mixed/open/file", "/mixed/private/file"):
            with client.open(name, "wb") as file:
                file.write(b"content")
        client.chmod("/mixed/private", 0o700)
    with somebody(cluster) as client:
        plan = Plan()
        plan_remote(plan, client, "/mixed", "/there", True)
        assert [item.source for item in plan.files] == ["/mixed/open/file"]
        [failure] = plan.failures
        assert failure.startswith("/mixed/private: permission denied")
        denied: list[str] = []
        assert listing._usage(client, "/mixed", denied.append)[""] == (7, 1)
        assert denied == ["private"]


def test_a_time_that_the_cluster_cannot_keep_costs_no_other_file(cluster: LocalCluster, tmp_path: Path) -> None:
    """As local file systems have it of a file from the year 2400."""
    for name in ("future", "present"):
        (tmp_path / name).write_text(name)
    items = [Item(str(tmp_path / "future"), "/future", mtime_ns=1 << 63), Item(str(tmp_path / "present"), "/present")]
    with emberfs.connect(cluster.url) as client:
        [failure] = carry_out(Plan(files=items), Put(client, preserve=True), jobs=1)
        assert "/future" in failure and "2262" in failure
        with client.open("/present") as file:
            assert file.read() == b"present"


def test_what_may_not_be_read_at_all_does_not_keep_the_rest_from_being_copied_and_shown(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with emberfs.connect(cluster.url) as client:
        for name in ("/beside/1", "/beside/2", "/beside/3"):
            client.mkdir(name, parents=True)
            client.write_bytes(f"{name}/file", b"content")
        client.chmod("/beside/2", 0o700)
    with somebody(cluster) as client:
        plan = Plan()
        for name in ("1", "2", "3"):
            plan_remote(plan, client, f"/beside/{name}", f"/there/{name}", True)
        assert [item.source for item in plan.files] == ["/beside/1/file", "/beside/3/file"]
        [failure] = plan.failures
        assert failure.startswith("/beside/2: ")

        @contextmanager
        def theirs(paths: list[str]) -> Iterator[tuple[Client, list[str]]]:
            yield client, paths

        monkeypatch.setattr(listing, "cluster_of", theirs)
        with pytest.raises(Failed):
            listing.ls(["/beside/1", "/beside/2", "/beside/3"], recursive=False)
        shown = capsys.readouterr()
        assert shown.out.splitlines() == ["/beside/1:", "file", "/beside/3:", "file"]
        assert "/beside/2" in shown.err
