"""The guest's kernel: fetched once, whatever the distribution's programs do. They are stood in for by scripts; nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import kernel
from .kernel import Unavailable

DEPENDS = "echo linux-image-amd64; echo '  Depends: linux-image-6.1.0-1-amd64'"


class Programs:
    """Scripts that are found in PATH before the distribution's."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        patch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        self.log = folder / "log"
        self.write("apt-cache", DEPENDS)

    def write(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$(basename "$0") $1" >>{self.log}\n{script}\n')
        path.chmod(0o755)

    @property
    def called(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith("apt-get")]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    return Programs(tmp_path, monkeypatch)


def refusal() -> str:
    with pytest.raises(Unavailable) as unavailable:
        kernel.find_kernel()
    left = [path.name for path in kernel.cache_directory().iterdir()]
    assert left == ["lock"], "nothing half-made is found by the next one"
    return str(unavailable.value)


def test_a_mirror_that_cannot_be_reached(programs: Programs) -> None:
    programs.write("apt-get", "echo 'E: Could not resolve deb.debian.org' >&2; exit 100")
    assert "apt-get update failed: E: Could not resolve deb.debian.org" in refusal()


def test_a_mirror_that_says_nothing(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "FETCH_SECONDS_MAX", 0.5)
    programs.write("apt-get", "exec sleep 1000")
    assert "was not done within" in refusal()


def test_no_such_package(programs: Programs) -> None:
    programs.write("apt-cache", "exit 0")
    programs.write("apt-get", "exit 0")
    assert "has no package linux-image-amd64" in refusal()
    assert programs.called == ["apt-get update"]


def test_lists_that_are_older_than_the_mirror_are_fetched_anew(programs: Programs) -> None:
    """The package is there then; that this one is no kernel is said, too."""
    fresh = programs.folder / "fresh"
    programs.write("apt-get", f"case $1 in update) touch {fresh};; download) [ -e {fresh} ] && touch new.deb;; esac")
    programs.write("dpkg-deb", 'mkdir -p "$3/boot"; echo nonsense >"$3/boot/vmlinuz-6.1.0-1-amd64"')
    assert "linux-image-6.1.0-1-amd64 is not as it was expected" in refusal()
    assert programs.called == ["apt-get download", "apt-get update", "apt-get download"]


def test_what_is_there_is_not_fetched_again(programs: Programs) -> None:
    folder = kernel.cache_directory() / f"6.1.0-1-amd64-{kernel.MADE_FROM}"
    (folder / "modules").mkdir(parents=True)
    (folder / "vmlinux").touch()
    (folder / "modules" / "00-one.ko").touch()
    other = kernel.cache_directory() / "6.1.0-2-amd64-made-for-other-needs"
    other.mkdir()
    (other / "vmlinux").touch()
    found = kernel.find_kernel()
    assert (found.image, [path.name for path in found.modules]) == (folder / "vmlinux", ["00-one.ko"])
    assert not programs.log.exists()
