"""gensort and valsort as they are called: by people, and by smallpond's benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

np = pytest.importorskip("numpy")
from emberfs.deploy.sorting import generator, keys, programs, summary  # noqa: E402

COUNT = programs.PIECE_RECORDS + 1000


def say(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


def sorted_file(path: Path, records: generator.Bytes) -> Path:
    path.write_bytes(keys.gathered(records, keys.order(records)).tobytes())
    return path


def test_as_smallpond_calls_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, found = tmp_path / "records", tmp_path / "found.sum"
    assert programs.gensort(["-t2", "-b5000", str(COUNT), f"{made},buf,trans=100m"]) == 0
    records = generator.records(5000, COUNT)
    assert made.read_bytes() == records.tobytes()
    sorted_file(made, records)
    assert programs.valsort(["-o", str(found), f"{made},buf,trans=10m"]) == 0
    assert summary.unpack(found.read_bytes())[0].records == COUNT
    assert programs.valsort(["-s", str(found)]) == 0
    checksum = f"{summary.checksum(records):x}"
    one = f"Records: {COUNT}\nChecksum: {checksum}\nDuplicate keys: 0\nSUCCESS - all records are in order\n"
    assert say(capsys) == one * 2


def test_parts_in_wrong_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = generator.records(0, 1000, ascii=True)
    ordered = keys.gathered(whole, keys.order(whole))
    for name, part in (("a", ordered[500:]), ("b", ordered[:500])):
        (tmp_path / name).write_bytes(part.tobytes())
        assert programs.valsort(["-q", "-o", str(tmp_path / f"{name}.sum"), str(tmp_path / name)]) == 0
    together = tmp_path / "all.sum"
    together.write_bytes((tmp_path / "a.sum").read_bytes() + (tmp_path / "b.sum").read_bytes())
    assert programs.valsort(["-s", str(together)]) == 1
    expected = ["First unordered record is record 500", "Records: 1000", f"Checksum: {summary.checksum(whole):x}"]
    assert say(capsys).splitlines() == [*expected, "ERROR - there are 1 unordered records"]


def test_checksum_without_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.gensort(["-c", "-a", "163840", "/dev/null"]) == 0
    assert say(capsys) == "1400fed7bb2c2\n"


def test_letters_and_capitals(tmp_path: Path) -> None:
    path = tmp_path / "two"
    path.write_bytes(b"a" * 100 + b"B" * 100)
    assert programs.valsort(["-q", str(path)]) == 1
    assert programs.valsort(["-q", "-i", str(path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-x", "1", "f"], "usage: gensort"),
        (["1"], "usage: gensort"),
        (["many", "f"], "usage: gensort"),
        (["-b", "1", "f"], "usage: gensort"),
        (["1", "/nowhere/at/all"], "/nowhere/at/all: No such file or directory"),
    ],
)
def test_gensort_complains(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.gensort(arguments) == 1
    assert say(capsys).startswith(complaint)


def test_valsort_complains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "torn").write_bytes(bytes(150))
    for arguments, complaint in (
        ([str(tmp_path / "empty")], "there must be at least one record to be validated"),
        ([str(tmp_path / "torn")], "partial record found at end"),
        (["-s", str(tmp_path / "torn")], "partial partition summary found at end"),
        ([str(tmp_path / "none")], f"{tmp_path}/none: No such file or directory"),
        ([], "usage: valsort"),
    ):
        assert programs.valsort(arguments) == 1
        assert say(capsys).startswith(complaint)


def test_exit_codes_of_processes(tmp_path: Path) -> None:
    """As console scripts run them."""

    def run(name: str, *arguments: str) -> int:
        code = f"import sys; from emberfs.deploy.sorting.programs import {name}; sys.exit({name}())"
        return subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments], check=False, capture_output=True
        ).returncode

    assert run("gensort", "10", os.fspath(tmp_path / "ten")) == 0
    assert (tmp_path / "ten").stat().st_size == 1000
    assert run("valsort", os.fspath(tmp_path / "ten")) == 1
