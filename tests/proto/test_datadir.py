"""Data directories: one process, one kind, one format; every refusal says which directory and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emberfs.proto.datadir import FORMAT_FILE, LOCK_FILE, open_data_directory, read_json, write_json
from emberfs.proto.errors import Status, StatusError


def refused(path: Path, kind: str = "meta", version: int = 2) -> StatusError:
    with pytest.raises(StatusError) as failed:
        open_data_directory(path, kind, version)
    assert str(path) in str(failed.value.strerror)
    return failed.value


def test_a_new_directory_is_made_private_and_remembers(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    opened = open_data_directory(path, "meta", 2)
    assert path.stat().st_mode & 0o777 == 0o700
    opened.remember(node=7)
    opened.remember(cluster="c")
    opened.close()
    again = open_data_directory(path, "meta", 2)
    assert again.facts == {"node": 7, "cluster": "c"}
    again.close()


def test_what_could_not_be_kept_is_not_remembered_later_either(tmp_path: Path) -> None:
    opened = open_data_directory(tmp_path, "meta", 2)
    opened.remember(node=7)
    in_the_way = tmp_path / f"{FORMAT_FILE}.{os.getpid()}.new"
    in_the_way.mkdir()
    with pytest.raises(OSError):
        opened.remember(node=8)
    with pytest.raises(OSError):
        opened.upgraded(3)
    assert opened.facts == {"node": 7}
    in_the_way.rmdir()
    opened.remember(cluster="c")
    opened.close()
    again = open_data_directory(tmp_path, "meta", 2)
    assert (again.facts, again.format) == ({"node": 7, "cluster": "c"}, 2)
    again.close()


def test_a_second_process_is_refused_and_a_killed_one_leaves_nothing_behind(tmp_path: Path) -> None:
    program = (
        "import sys; from emberfs.proto.datadir import open_data_directory as o\n"
        "d = o(sys.argv[1], 'meta', 2); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        taken = refused(tmp_path)
        assert taken.status is Status.BUSY_RESOURCE and str(holder.pid) in str(taken.strerror)
    finally:
        holder.kill()
        holder.communicate()
    open_data_directory(tmp_path, "meta", 2).close()


def test_a_newer_format_is_refused_and_an_older_one_is_handed_over(tmp_path: Path) -> None:
    open_data_directory(tmp_path, "meta", 3, software="9.9").close()
    newer = refused(tmp_path, version=2)
    assert newer.status is Status.BAD_FORMAT and "9.9" in str(newer.strerror)
    opened = open_data_directory(tmp_path, "meta", 4)
    assert opened.format == 3
    opened.upgraded(4)
    opened.close()
    assert read_json(tmp_path / FORMAT_FILE)["format"] == 4


def test_another_kind_is_refused(tmp_path: Path) -> None:
    open_data_directory(tmp_path, "storage", 1).close()
    assert refused(tmp_path).status is Status.BAD_FORMAT


def test_foreign_files_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert refused(tmp_path).status is Status.BAD_FORMAT


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b'{"kind": "meta"}', b'{"format": "2", "kind": "meta"}', b"x" * 70000]
)
def test_a_damaged_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FORMAT_FILE).write_bytes(content)
    assert refused(tmp_path).status is Status.BAD_FORMAT


def test_a_crash_while_the_first_record_was_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    (tmp_path / f"{FORMAT_FILE}.123.new").write_text("{")
    open_data_directory(tmp_path, "meta", 2).close()


def test_a_path_that_cannot_be_a_directory(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refused(file).status is Status.IO_ERROR
    assert refused(file / "below").status is Status.IO_ERROR
    assert refused(Path("/proc/emberfs")).status is Status.IO_ERROR


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    write_json(file, {"a": 1})
    write_json(file, {"a": 2}, mode=0o600)
    assert json.loads(file.read_text()) == {"a": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]
