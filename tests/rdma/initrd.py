"""The initial file system of a guest: busybox, the kernel modules that the guest needs, in order, and its first process.

Made anew for every boot, in a few milliseconds: an archive of the format that the kernel unpacks ("newc"), without compression, as
unpacking is slow in a machine that is emulated.
"""

from __future__ import annotations

import io
import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

# What must be there: files of other machines, a root that can be written, a wire, verbs over it. Dependencies come by themselves, except
# those that the kernel asks for by the name of an algorithm.
MODULES = (
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "veth",
    "sch_netem",
    "crc32_generic",
    "crc32_pclmul",
    "crc32c_generic",
    "ib_uverbs",
    "rdma_rxe",
    "fuse",
)
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_DIRECTORY, _FILE = 0o040755, 0o100755


def module_name(path: Path) -> str:
    """How the kernel calls a module's file: "crc32-pclmul.ko.xz" is crc32_pclmul."""
    return path.name.split(".ko")[0].replace("-", "_")


def read_module(path: Path) -> bytes:
    """The module without the compression that some distributions use. Raises OSError, lzma.LZMAError."""
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def module_order(files: Iterable[Path]) -> dict[str, bytes]:
    """Of a kernel's module files those that `MODULES` need, each behind what it depends on. What the kernel has built in has no file.

    Raises LookupError for a module that one depends on and that is not there.
    """
    paths = {module_name(path): path for path in files}
    found: dict[str, bytes] = {}

    def visit(name: str) -> None:
        if name in found:
            return
        content = read_module(paths[name])
        depends = _DEPENDS.search(content)
        for other in (depends[1].decode() if depends else "").split(","):
            if other:
                visit(other.replace("-", "_"))
        found[name] = content

    for name in MODULES:
        if name in paths:
            visit(name)
    return found


def archive(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive of these files, all executable, and of the directories above them."""
    out = io.BytesIO()
    directories = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    for number, (name, mode, content) in enumerate(
        [
            *((directory, _DIRECTORY, b"") for directory in directories),
            *((name, _FILE, content) for name, content in files.items()),
            ("TRAILER!!!", 0, b""),
        ],
        start=1,
    ):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + path)
        _align(out)
        out.write(content)
        _align(out)
    return out.getvalue()


def _align(out: io.BytesIO) -> None:
    out.write(bytes(-out.tell() % 4))


def build(busybox: Path, modules: Iterable[Path], init: Path) -> bytes:
    """The archive of a guest whose first process is the script `init`. `modules`: files, in the order in which they are loaded."""
    modules = list(modules)
    files = {"bin/busybox": busybox.read_bytes(), "init": init.read_bytes()}
    files["modules/order"] = "".join(f"{path.name}\n" for path in modules).encode()
    return archive(files | {f"modules/{path.name}": path.read_bytes() for path in modules})
