"""What a saved checkpoint consists of, with checksums: a JSON file beside it that names the very `.metadata` it belongs to.

Readers of checkpoints need only `.metadata`, which torch defines (a pickle). The manifest is for those who list, verify and prune, without
torch. `.metadata` alone decides which checkpoint is there: a manifest counts if it says the checksum of the one that is there, so
that replacing `.metadata` replaces both in one step.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ...proto.errors import Status, error
from ..core.verify import crc32c
from .folders import Entry, Folder, read_all

METADATA = ".metadata"
PREFIX, SUFFIX = ".manifest-", ".json"
SHARD_SUFFIX = ".distcp"
FORMAT = 1


class Item(NamedTuple):
    """A stretch of a file that belongs to the checkpoint."""

    name: str  # of the tensor or object
    offset: int  # bytes
    length: int
    crc32c: int


class Shard(NamedTuple):
    """A file of the checkpoint."""

    name: str
    size: int  # bytes
    items: tuple[Item, ...]


class Manifest(NamedTuple):
    save_id: str
    metadata_size: int  # bytes
    metadata_crc32c: int
    shards: tuple[Shard, ...]

    @property
    def size(self) -> int:
        """Bytes of all files that it names."""
        return self.metadata_size + sum(shard.size for shard in self.shards)

    @property
    def tensors(self) -> int:
        """How many tensors and objects, each counted once in however many pieces it lies."""
        return len({item.name for shard in self.shards for item in shard.items})


def name_of(save_id: str) -> str:
    return f"{PREFIX}{save_id}{SUFFIX}"


def is_manifest(name: str) -> bool:
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def encode(manifest: Manifest) -> bytes:
    shards = [
        {"name": shard.name, "size": shard.size, "items": [list(item) for item in shard.items]}
        for shard in manifest.shards
    ]
    content = {
        "format": FORMAT,
        "save_id": manifest.save_id,
        "metadata": {"size": manifest.metadata_size, "crc32c": manifest.metadata_crc32c},
        "shards": shards,
    }
    body = json.dumps(content, separators=(",", ":"), sort_keys=True)
    return f'{{"manifest":{body},\n"crc32c":{crc32c(body.encode())}}}\n'.encode()


def decode(data: bytes, path: str) -> Manifest:
    """Raises BAD_FORMAT for what is damaged, and for a format that is newer than this version."""
    try:
        found = json.loads(data)
        content = found["manifest"]
        body = json.dumps(content, separators=(",", ":"), sort_keys=True)
        if crc32c(body.encode()) != found["crc32c"]:
            raise ValueError("its checksum does not match")
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}, this version knows {FORMAT}")
        shards = [Shard(s["name"], s["size"], tuple(Item(*item) for item in s["items"])) for s in content["shards"]]
        if any(shard.name != posixpath.basename(shard.name) for shard in shards):
            raise ValueError("it names files outside its directory")
        metadata = content["metadata"]
        numbers = [
            number for shard in shards for number in (shard.size, *(n for item in shard.items for n in item[1:]))
        ]
        if not all(type(number) is int and number >= 0 for number in (*numbers, metadata["size"], metadata["crc32c"])):
            raise ValueError("sizes, offsets and checksums must be natural numbers")
        return Manifest(content["save_id"], metadata["size"], metadata["crc32c"], tuple(shards))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as bad:
        raise error(Status.BAD_FORMAT, f"{path} is damaged: {bad}") from bad


def shards_of(pieces: Iterable[tuple[str, Item]], sizes: dict[str, int]) -> tuple[Shard, ...]:
    """Gather (file, item) pairs by file."""
    by_file: dict[str, list[Item]] = {}
    for name, item in pieces:
        by_file.setdefault(name, []).append(item)
    return tuple(Shard(name, sizes[name], tuple(items)) for name, items in sorted(by_file.items()))


def find(folder: Folder, entries: dict[str, Entry]) -> tuple[Manifest | None, str]:
    """The manifest of the `.metadata` that is there, and what is wrong if it has none ("": it was not written by us)."""
    seen = read_all(folder, METADATA)
    trouble = ""
    for name in entries:
        if not is_manifest(name):
            continue
        try:
            manifest = decode(read_all(folder, name), f"{folder.url}/{name}")
        except OSError as bad:
            trouble = bad.strerror or str(bad)
            continue
        if (manifest.metadata_size, manifest.metadata_crc32c) == (len(seen), crc32c(seen)):
            return manifest, ""
        trouble = trouble or f"{METADATA} is not the one that {name} was made for"
    return None, trouble


def leftovers(names: Iterable[str], kept: Sequence[str], part_suffix: str) -> list[str]:
    """What a save that was broken off, or the checkpoint before, has left in the directory."""
    return [
        name for name in names if name not in kept and (name.endswith((SHARD_SUFFIX, part_suffix)) or is_manifest(name))
    ]


def described(manifest: Manifest) -> dict[str, Any]:
    """For people and JSON: without the items."""
    return {"save_id": manifest.save_id, "bytes": manifest.size, "tensors": manifest.tensors}
