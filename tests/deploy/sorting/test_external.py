"""The sort in two phases: in a cluster without a mount, on the local disk, from one to the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
import emberfs  # noqa: E402
from emberfs.client.blocking import Client  # noqa: E402
from emberfs.deploy.local import LocalCluster  # noqa: E402
from emberfs.deploy.sorting import external, generator, keys, parallel  # noqa: E402
from emberfs.deploy.sorting.parallel import File, Kind, Workers  # noqa: E402
from emberfs.proto.errors import StatusError  # noqa: E402

from ..command import Command  # noqa: E402

JOBS = 2
MEMORY = JOBS * external.MEMORY_MIN  # 13,981 records a chunk
COUNT = 100_000


@pytest.fixture(scope="module")
def pool() -> Iterator[Workers]:
    with parallel.workers(JOBS) as made:
        yield made


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    with emberfs.connect(cluster.url) as made:
        made.mkdir("/sorting", exist_ok=True)  # a worker that takes over tests of others comes here once more
        yield made


def expected(kind: Kind) -> list[bytes]:
    records = generator.records(kind.begin, COUNT, ascii=kind.ascii, skewed=kind.skewed)
    return sorted(record.tobytes()[:10] for record in records)


def found_in(data: bytes) -> list[bytes]:
    return [record.tobytes()[:10] for record in keys.as_records(data)]


@pytest.mark.parametrize("kind", [Kind(), Kind(skewed=True), Kind(begin=2**40, ascii=True)])
def test_in_a_cluster(client: Client, cluster: LocalCluster, pool: Workers, kind: Kind) -> None:
    source, target = File(cluster.url, "/sorting/in"), File(cluster.url, "/sorting/out")
    checksum = parallel.generate(pool, source, COUNT, kind, checksum=True)
    through: list[int] = []
    made = external.sort(pool, source, target, memory=MEMORY, checksum=True, done=through.append)
    assert made == (COUNT, checksum, 8, 8) and sum(through) == 2 * COUNT * generator.RECORD_BYTES
    found = parallel.validate(pool, [target])
    assert found.ordered and (found.records, found.checksum) == (COUNT, checksum)
    assert found_in(client.read_bytes("/sorting/out")) == expected(kind)
    assert client.listdir("/sorting") == ["in", "out"]


def test_from_the_disk_to_a_cluster_and_over_itself(
    client: Client, cluster: LocalCluster, pool: Workers, tmp_path: Path
) -> None:
    source, target = File("", str(tmp_path / "in")), File(cluster.url, "/sorting/other")
    parallel.generate(pool, source, COUNT, Kind())
    external.sort(pool, source, target, scratch=File("", str(tmp_path)), memory=MEMORY)
    assert found_in(client.read_bytes("/sorting/other")) == expected(Kind())
    external.sort(pool, source, source, memory=MEMORY)
    assert found_in((tmp_path / "in").read_bytes()) == expected(Kind())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    client.unlink("/sorting/other")


def test_one_key_for_all(pool: Workers, tmp_path: Path) -> None:
    """All records fall into one partition."""
    records = generator.records(0, 50_000)
    records[:, : generator.KEY_BYTES] = 7
    (tmp_path / "in").write_bytes(records.tobytes())
    source, target = File("", str(tmp_path / "in")), File("", str(tmp_path / "out"))
    made = external.sort(pool, source, target, memory=MEMORY, checksum=True)
    found = parallel.validate(pool, [target])
    assert found.ordered and (found.duplicates, found.checksum) == (49_999, made.checksum)


def test_little_and_nothing(pool: Workers, tmp_path: Path) -> None:
    for count in (0, 1, 3):
        source, target = File("", str(tmp_path / "in")), File("", str(tmp_path / "out"))
        parallel.generate(pool, source, count, Kind())
        assert external.sort(pool, source, target).records == count
        assert (tmp_path / "out").stat().st_size == count * generator.RECORD_BYTES


def test_a_sort_that_fails_leaves_nothing(pool: Workers, tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(bytes(1050))
    with pytest.raises(StatusError, match="whole number of records"):
        external.sort(pool, File("", str(tmp_path / "torn")), File("", str(tmp_path / "out")))
    parallel.generate(pool, File("", str(tmp_path / "in")), 1000, Kind())
    with pytest.raises(StatusError, match="need 8 MiB"):
        external.sort(pool, File("", str(tmp_path / "in")), File("", str(tmp_path / "out")), memory=1 << 20)
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        external.sort(pool, File("", str(tmp_path / "in")), File("", str(tmp_path / "directory")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "in", "torn"]


def test_commands(client: Client, cluster: LocalCluster, tmp_path: Path) -> None:
    run = Command({"EMBERFS_URL": cluster.url})
    made = run("sort", "generate", "20000", "ember:///sorting/cli", "--checksum", "-j", "1", "--json").json
    done = run("sort", "run", "ember:///sorting/cli", str(tmp_path / "out"), "--validate", "-j", "1", "--json").json
    assert done["validated"] and (done["records"], done["checksum"]) == (20000, made["checksum"])
    text = run("sort", "validate", str(tmp_path / "out"), "-j", "1").text
    lines = [f"Checksum: {made['checksum']}", "Duplicate keys: 0", "SUCCESS - all records are in order"]
    assert text.splitlines() == ["Records: 20000", *lines]
    run.fail(1, "sort", "run", "ember:///sorting/none", str(tmp_path / "x"), "-j", "1")
    unordered = run.any("sort", "validate", "ember:///sorting/cli", "-j", "1")
    assert unordered.code == 1 and "First unordered record is record 2" in unordered.text
    client.unlink("/sorting/cli")
