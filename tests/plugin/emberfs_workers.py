"""Functions for processes that tests spawn: a spawned interpreter must be able to import them by name, without pytest."""

from __future__ import annotations

import hashlib
import os
from typing import Any

FILES_MAX = 40  # of one worker at a time: long runs must not fill the cluster


def digest_file(url: str, path: str) -> str:
    """SHA-256 of a file of the cluster, read by a client of this process's own."""
    import emberfs

    with emberfs.connect(url) as client:
        return hashlib.sha256(client.read_bytes(path)).hexdigest()


def write_pattern(url: str, path: str, length: int) -> int:
    """Write `length` bytes that name their own position, from a client of this process; returns its process id."""
    import emberfs

    with emberfs.connect(url) as client:
        client.write_bytes(path, pattern(length))
    return os.getpid()


def pattern(length: int) -> bytes:
    """Bytes in which every aligned eight say their own offset: a misplaced piece is seen at once."""
    words = (length + 7) // 8
    return b"".join((8 * word).to_bytes(8, "big") for word in range(words))[:length]


def read_slices_in_child(fs: Any, path: str, slices: list[tuple[int, int]]) -> list[bytes]:
    """Ranges of a file through a file system that this process inherited or unpickled, as loader workers do."""
    return fs.cat_ranges([path] * len(slices), [a for a, _ in slices], [b for _, b in slices], on_error="raise")


def acknowledge_operations(url: str, folder: str, seed: int, journal: str, stop: str, timeout: float = 60) -> int:
    """Work in `folder` until the file `stop` exists: create, overwrite, append, rename and remove files, and write each operation
    to the local file `journal` before it is tried ("try") and after it was acknowledged ("done"). Returns how many were done.

    Operations wait for servers that are away; one that fails all the same is left as tried: it may or may not have happened.
    """
    import json
    import random

    import emberfs

    draw = random.Random(seed)
    files: dict[str, bytes] = {}
    done = 0
    with emberfs.connect(url, timeout=timeout) as client, open(journal, "a", buffering=1) as log:
        while not os.path.exists(stop):
            kind = draw.choice(["write", "write", "append", "rename", "remove", "overwrite"])
            if not files:
                kind = "write"
            elif kind == "write" and len(files) >= FILES_MAX:
                kind = "remove"
            name = f"{folder}/f{seed}-{done}" if kind == "write" else draw.choice(sorted(files))
            size = draw.choice([1, 100, 5000, 70_000, 1_200_000])
            content = draw.randbytes(size)
            record: dict[str, Any] = {"name": name}
            if kind == "write":
                files[name] = content
            elif kind == "append":
                files[name] += content
            elif kind == "overwrite":
                at = draw.randrange(len(files[name]))
                files[name] = files[name][:at] + content + files[name][at + size :]
            elif kind == "rename":
                record["to"] = f"{name}r"
                files[record["to"]] = files.pop(name)
            else:
                del files[name]
            left = record.get("to", name)
            record["sha256"] = hashlib.sha256(files[left]).hexdigest() if left in files else None
            log.write(json.dumps({"state": "try", **record}) + "\n")
            if kind == "append":
                with client.open(name, "ab") as file:
                    file.write(content)
            elif kind == "overwrite":
                with client.open(name, "r+b") as file:
                    file.pwrite(content, at)
            elif kind == "rename":
                client.rename(name, record["to"])
            elif kind == "remove":
                client.unlink(name)
            else:
                client.write_bytes(name, content)
            log.write(json.dumps({"state": "done", **record}) + "\n")
            done += 1
    return done


def write_records(url: str, journal: str, payload_bytes: int, count: int) -> None:
    """Go on with a shard of packed records until it has `count` samples, each its number over and over; a line for each commit, once it is
    made."""
    from emberfs.client.loader.record_writer import RecordWriter
    from emberfs.client.loader.store import open_store

    store = open_store(url)
    there = bool(store.find(".records"))
    with open(journal, "a") as log, RecordWriter(store, "a.records", append=there) as writer:
        for number in range(writer.samples, count):
            writer.write(number.to_bytes(4, "little") * (payload_bytes // 4))
            if writer.samples % 50 == 0:
                writer.commit()
                log.write(f"{writer.samples}\n")
                log.flush()
    store.close()


def read_epoch(url: str, journal: str, batches: int, batch_size: int) -> None:
    """Read an epoch of a data set, or what is left of it by `journal`: a JSON line for each batch, with its samples, the digest of their
    bytes and the loader's state. Stops in the middle of a batch after so many, for somebody to kill this process."""
    import json
    import signal

    from emberfs.client.loader import Loader, open_samples

    loader = Loader(open_samples(url), batch_size, seed=3)
    with open(journal, "a+") as log:
        log.seek(0)
        lines = log.read().splitlines()
        if lines:
            loader.load_state_dict(json.loads(lines[-1])["state"])
        for done, batch in enumerate(loader):
            if done == batches:
                signal.pause()
            digest = hashlib.sha256(batch.data).hexdigest()
            line = {"numbers": batch.numbers.tolist(), "digest": digest, "state": loader.state_dict()}
            log.write(json.dumps(line) + "\n")
            log.flush()
