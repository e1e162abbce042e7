"""The kernel of the guest: the distribution's package, fetched once and kept in the user's cache directory.

NAME/vmlinux is unpacked (an emulated machine would spend seconds on that); NAME/modules/ has those of `initrd.MODULES` and what they
depend on as 00-name.ko, 01-name.ko… in the order of loading. NAME is the version, and stands for what else the folder was made from.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import initrd

PACKAGE = "linux-image-amd64"  # depends on the package of the newest version
FETCH_SECONDS_MAX = 180.0  # for all of it; 70 MB
MADE_FROM = hashlib.sha256(f"{initrd.MODULES}".encode()).hexdigest()[:8]


class Unavailable(Exception):
    """No guest can be booted here; says why, as the reason of a skipped test."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """What qemu is given."""

    image: Path
    modules: tuple[Path, ...]  # in the order in which they are loaded


def cache_directory() -> Path:
    """Where kernels are kept: emberfs/rdma-vm under the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emberfs" / "rdma-vm"


def find_kernel() -> Kernel:
    """The kernel in the cache, which is filled the first time. Raises Unavailable."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):
        kept = sorted(cache.glob(f"*-{MADE_FROM}/vmlinux"), key=lambda path: path.stat().st_mtime)
        folder = kept[-1].parent if kept else _fetch(cache)
    return Kernel(folder / "vmlinux", tuple(sorted(folder.glob("modules/*.ko"))))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Others that want the same kernel wait."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path) -> Path:
    """A new folder of the cache, whole as soon as it has its name. What was made before for other needs, or not finished, is removed."""
    end = time.monotonic() + FETCH_SECONDS_MAX
    for left in [*cache.glob("fetching-*"), *(vmlinux.parent for vmlinux in cache.glob("*/vmlinux"))]:
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-", ignore_cleanup_errors=True) as name:
        work = Path(name)
        package = _download(work, end)
        [archive] = work.glob("*.deb")
        _command("dpkg-deb", "-x", str(archive), str(work / "root"), cwd=work, end=end)
        made = work / "kernel"
        try:
            _unpack(work / "root", made)
        except (OSError, LookupError, ValueError, lzma.LZMAError) as failed:
            raise Unavailable(f"{package} is not as it was expected: {failed!r}") from failed
        return made.rename(cache / f"{package.removeprefix('linux-image-')}-{MADE_FROM}")


def _download(work: Path, end: float) -> str:
    """The package of the newest kernel, by name, and its file in `work`. The lists of packages are fetched where they are not there, or
    name one that is there no more. Raises Unavailable."""
    if shutil.which("apt-get") is None:
        raise Unavailable("no apt-get, and its kernel comes from Debian's packages")
    if package := _newest():
        try:
            _command("apt-get", "download", "-qq", package, cwd=work, end=end)
            return package
        except Unavailable:
            pass  # lists older than what the mirror has
    _command("apt-get", "update", "-qq", cwd=work, end=end)
    package = _newest()
    if not package:
        raise Unavailable(f"the distribution has no package {PACKAGE}")
    _command("apt-get", "download", "-qq", package, cwd=work, end=end)
    return package


def _newest() -> str:
    """What `PACKAGE` depends on; "" where the lists have no such package."""
    listed = subprocess.run(["apt-cache", "depends", PACKAGE], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    return ""


def _command(*words: str, cwd: Path, end: float) -> None:
    """Until `end`, of the monotonic clock. Raises Unavailable."""
    try:
        subprocess.run(
            words, cwd=cwd, check=True, capture_output=True, text=True, timeout=max(end - time.monotonic(), 0.0)
        )
    except subprocess.CalledProcessError as failed:
        last = (failed.stderr.strip() or "no reason given").splitlines()[-1]
        raise Unavailable(f"{' '.join(words[:2])} failed: {last}") from failed
    except subprocess.TimeoutExpired as failed:
        raise Unavailable(
            f"{' '.join(words[:2])} was not done within {FETCH_SECONDS_MAX:.0f} s of fetching"
        ) from failed
    except OSError as failed:
        raise Unavailable(f"{' '.join(words[:2])}: {failed}") from failed


def _unpack(root: Path, target: Path) -> None:
    """Of a package's files what a guest needs."""
    (target / "modules").mkdir(parents=True)
    modules = initrd.module_order(root.rglob("*.ko*"))
    for number, (name, content) in enumerate(modules.items()):
        (target / "modules" / f"{number:02}-{name}.ko").write_bytes(content)
    [image] = (root / "boot").glob("vmlinuz-*")
    (target / "vmlinux").write_bytes(unpacked(image.read_bytes()))


def unpacked(image: bytes) -> bytes:
    """The kernel proper in a bootable image (Documentation/x86/boot.rst). Raises ValueError for what is none, or compressed in a way
    that Python does not know: such an image boots as it is."""
    sectors = image[0x1F1]
    if image[0x202:0x206] != b"HdrS":
        raise ValueError("no Linux boot image")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    packed = image[start : start + length]
    for magic, unpack in ((b"\xfd7zXZ\0", lzma.decompress), (b"\x1f\x8b", gzip.decompress)):
        if packed.startswith(magic):
            # The last four bytes say how long the result is; they are no part of what xz made.
            return unpack(packed[:-4] if magic[0] == 0xFD else packed)
    return image
