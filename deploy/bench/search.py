"""Embedding search: an index of nearest neighbours that is mapped on a mount, and exact distances by batched reads of the client, against
the same files on the local disk. See client/SEARCH.md."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...client.blocking import Client, connect
from .loads import drop_caches
from .measure import MIB, in_turns, rate, row, temporary_cluster
from .mount import mounted

NEIGHBOURS = 10  # that are asked for
CANDIDATES = 50  # of which they are chosen by exact distance
CLUSTERS = 256  # of the vectors: uniform ones have no near neighbours
SPREAD = 0.5  # of a cluster, and a fifth of it between a query and the vector it is made of
SEED = 8


class Sizes(NamedTuple):
    vectors: int
    dimensions: int
    queries: int
    rounds: int


FULL = Sizes(200_000, 256, 1000, 3)
QUICK = Sizes(5_000, 64, 200, 2)
CAPACITY = 4 << 30


class Data(NamedTuple):
    """What is searched: `truth` are the keys of the nearest vectors of each query."""

    vectors: Any
    queries: Any
    truth: Any


Search = Callable[[], Any]  # the keys that were found


def run(quick: bool = False) -> dict[str, Any]:
    """Measure on a cluster and a mount of its own. Needs root (for the mount, and to drop caches), usearch and numpy; nothing is
    measured where these are not."""
    try:
        import usearch.index  # noqa: F401
    except ModuleNotFoundError as missing:
        return {"rows": [], "left_out": f"left out, it needs {missing.name}: pip install usearch numpy"}
    sizes = QUICK if quick else FULL
    data = make(sizes)
    with (
        temporary_cluster(port=0, capacity=CAPACITY) as (cluster, folder),
        mounted(cluster.url, folder / "mount", "") as mount,
        connect(cluster.url) as client,
    ):
        local = folder / "local"
        for place in (mount / "search", local):
            place.mkdir()
        build_s, size = _store(data, [mount / "search", local])
        rows = [*_mapped(data, mount / "search", local, sizes), *_batched(data, client, local, sizes)]
    return {"rows": rows, "index_mib": round(size / MIB, 1), "build_s": round(build_s, 1), **sizes._asdict()}


def make(sizes: Sizes) -> Data:
    """Vectors in clusters, queries beside some of them, and the answers by comparing all with all."""
    import numpy as np

    random = np.random.default_rng(SEED)
    centres = random.standard_normal((CLUSTERS, sizes.dimensions), np.float32)
    noise = random.standard_normal((sizes.vectors, sizes.dimensions), np.float32)
    vectors = _normalised(centres[random.integers(0, CLUSTERS, sizes.vectors)] + SPREAD * noise)
    beside = random.standard_normal((sizes.queries, sizes.dimensions), np.float32) * SPREAD / 5
    queries = _normalised(vectors[random.integers(0, sizes.vectors, sizes.queries)] + beside / sizes.dimensions**0.5)
    near = np.argpartition(-(queries @ vectors.T), NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    return Data(vectors, queries, near)


def _normalised(vectors: Any) -> Any:
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recall(data: Data, found: Any) -> float:
    """The part of the true neighbours that was found."""
    hits = (data.truth[:, :, None] == found[:, None, :NEIGHBOURS].astype(data.truth.dtype)).any(axis=2)
    return float(hits.mean())


def _store(data: Data, places: list[Path]) -> tuple[float, int]:
    """Build the index, and store it and the vectors in each place; seconds of building, bytes."""
    import numpy as np
    from usearch.index import Index

    index = Index(ndim=data.vectors.shape[1], metric="cos", dtype="i8")
    begin = time.perf_counter()
    index.add(np.arange(len(data.vectors)), data.vectors)
    seconds = time.perf_counter() - begin
    for place in places:
        index.save(str(place / "index"))
        data.vectors.tofile(place / "vectors")
    return seconds, (places[0] / "index").stat().st_size


# --- ways to search --------------------------------------------------------------------------------------------------------------------


def mapped(data: Data, path: Path) -> Search:
    """Through an index that is mapped."""
    from usearch.index import Index

    index = Index.restore(str(path), view=True)
    return lambda: index.search(data.queries, NEIGHBOURS).keys


def exact(data: Data, content: bytes, read: Callable[[Any], Any]) -> Search:
    """Through an index in memory; `read` gets the vectors of its candidates (an array of keys), which are then compared exactly."""
    import numpy as np
    from usearch.index import Index

    index = Index.restore(content)

    def search() -> Any:
        candidates = index.search(data.queries, CANDIDATES).keys
        wanted, places = np.unique(candidates, return_inverse=True)
        near = read(wanted)[places.reshape(candidates.shape)]
        scores = np.einsum("qkd,qd->qk", near, data.queries)
        return np.take_along_axis(candidates, np.argsort(-scores, axis=1)[:, :NEIGHBOURS], axis=1)

    return search


def by_client(data: Data, client: Client, path: str) -> Callable[[Any], Any]:
    """Vectors from a file of the cluster, in one batched read."""
    import numpy as np

    dimensions = data.vectors.shape[1]
    width = dimensions * data.vectors.itemsize
    file = client.open(path)

    def read(keys: Any) -> Any:
        out = np.empty((len(keys), dimensions), np.float32)
        file.preadv_batch([(offset, width) for offset in (keys * width).tolist()], out)
        return out

    return read


def by_mapping(data: Data, path: Path) -> Callable[[Any], Any]:
    """Vectors from a local file, as numpy maps it."""
    import numpy as np

    stored = np.memmap(path, np.float32, "r", shape=data.vectors.shape)
    return lambda keys: stored[keys]


# --- rows ------------------------------------------------------------------------------------------------------------------------------


def _mapped(data: Data, ours: Path, local: Path, sizes: Sizes) -> list[dict[str, Any]]:
    searches = [mapped(data, place / "index") for place in (ours, local)]
    found = [recall(data, search()) for search in searches]
    rows = [row("recall of 10, mapped", found[0], "", found[1], aim=1.0)]
    rows.append(_rates("queries, mapped on the mount, warm", searches, sizes))

    def cold(place: Path) -> float:
        drop_caches()
        return rate(sizes.queries, lambda: recall(data, mapped(data, place / "index")()))

    ways = in_turns([lambda: cold(ours), lambda: cold(local)], sizes.rounds)
    return [*rows, row("queries, mapped on the mount, opened and cold", ways[0], "/s", ways[1])]


def _batched(data: Data, client: Client, local: Path, sizes: Sizes) -> list[dict[str, Any]]:
    begin = time.perf_counter()
    content = client.read_bytes("/search/index")
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    bare = (local / "index").read_bytes()
    bare_seconds = time.perf_counter() - begin
    reads = [by_client(data, client, "/search/vectors"), by_mapping(data, local / "vectors")]
    searches = [exact(data, kept, read) for kept, read in zip((content, bare), reads, strict=True)]
    found = [recall(data, search()) for search in searches]
    size = len(content) / MIB
    return [
        row("index read by the client", size / seconds, "MiB/s", size / bare_seconds),
        row("recall of 10, exact distances of 50", found[0], "", found[1], aim=1.0),
        _rates("queries, exact distances by batched reads, warm", searches, sizes),
    ]


def _rates(what: str, searches: list[Search], sizes: Sizes) -> dict[str, Any]:
    ours, bare = in_turns([lambda search=search: rate(sizes.queries, search) for search in searches], sizes.rounds)  # type: ignore[misc]
    return row(what, ours, "/s", bare)
