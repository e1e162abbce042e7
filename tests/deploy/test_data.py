"""`emberfs data`: from any format to packed records, looked at and verified."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from emberfs.client.loader import ShardedWriter, open_samples, open_store
from emberfs.client.loader.tar import members

from .command import Command

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

COUNT = 200


def payload(number: int) -> bytes:
    return number.to_bytes(4, "little") * (1 + number)


@pytest.fixture
def run(tmp_path: Path) -> Command:
    return Command({"HOME": str(tmp_path)})


def test_a_data_set_goes_into_the_cluster_and_out_again(run: Command, cluster: LocalCluster, tmp_path: Path) -> None:
    where = cluster.url.rstrip("/") + "/data-cli"
    with ShardedWriter(open_store(tmp_path / "in"), shard_bytes=20_000) as writer:
        writer.write_all(map(payload, range(COUNT)))
    assert "200 samples" in run("data", "convert", f"file://{tmp_path}/in", where, "--shard-size", "64KiB").text
    found = run("data", "inspect", where, "--json").json
    assert found["samples"] == COUNT and found["format"] == "records" and found["checksums"]
    assert len(found["shards"]) > 1 and not any(shard["problem"] for shard in found["shards"])
    assert "none damaged" in run("data", "verify", where).text
    run("data", "convert", where, f"file://{tmp_path}/out", "--to", "ffrecord")
    assert [bytes(sample) for sample in open_samples(tmp_path / "out").read(range(COUNT))] == list(
        map(payload, range(COUNT))
    )
    assert run("data", "verify", f"file://{tmp_path}/out", "--json").json["samples"] == COUNT


def test_damage_and_death_are_shown(run: Command, tmp_path: Path) -> None:
    with ShardedWriter(open_store(tmp_path / "in")) as writer:
        writer.write_all(map(payload, range(50)))
    shard = tmp_path / "in" / writer.paths[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole + b"more")
    assert "4 bytes behind the last commit" in " ".join(run("data", "inspect", f"file://{tmp_path}/in").text.split())
    at = whole.index(payload(7))
    shard.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    assert "sample 7 is damaged" in run.fail(4, "data", "verify", f"file://{tmp_path}/in")
    shard.write_bytes(b"something else")
    assert "no shard of records" in run.fail(1, "data", "inspect", f"file://{tmp_path}/in")
    run.fail(1, "data", "inspect", f"file://{tmp_path}/nothing")


def test_tar_shards_become_records_that_stay_whole(run: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as archive:
        for number in range(10):
            for ending, data in (("txt", payload(number)), ("cls", b"%d" % number)):
                info = tarfile.TarInfo(f"{number:03d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    run("data", "convert", f"file://{tmp_path}/in", f"file://{tmp_path}/o%20t")
    assert run("data", "verify", f"file://{tmp_path}/o%20t", "--json").json["samples"] and (tmp_path / "o t").is_dir()
    sample = open_samples(tmp_path / "o t", decode=members)[7]
    assert bytes(sample["txt"]) == payload(7) and bytes(sample["cls"]) == b"7"


def test_shards_of_another_conversion_do_not_stay_among_the_new_ones(run: Command, tmp_path: Path) -> None:
    """Nor is a data set converted over itself, while it is read."""
    with ShardedWriter(open_store(tmp_path / "in"), shard_bytes=20_000) as writer:
        writer.write_all(map(payload, range(COUNT)))
    source, target = f"file://{tmp_path}/in", f"file://{tmp_path}/out"
    run("data", "convert", source, target, "--shard-size", "16KiB")
    assert "is there already" in run.fail(1, "data", "convert", source, target, "--shard-size", "1MiB")
    assert "is there already" in run.fail(1, "data", "convert", source, source, "--shard-size", "1MiB")
    for place in (source, target):
        assert run("data", "verify", place, "--json").json == {
            "samples": COUNT,
            "bytes": sum(4 * (1 + n) for n in range(COUNT)),
            "damaged": [],
        }
    run("data", "convert", source, target, "--name", "other")
    (tmp_path / "out" / "sub").mkdir()
    run("data", "convert", source, target, "--name", "sub/other")
    assert "is there already" in run.fail(1, "data", "convert", source, target, "--name", "sub/other")
    run("data", "convert", source, target, "--to", "ffrecord")
    assert "is there already" in run.fail(1, "data", "convert", source, target, "--to", "ffrecord")
