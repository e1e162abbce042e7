"""Request traces of the KV cache: read from a file, or made with the statistics of a real one.

A request is the list of its blocks' ids, from the first of its prefix to the last; equal ids are equal prefixes. The file format is that of
Mooncake's published traces: JSON lines with `timestamp` (ms) and `hash_ids`, optionally compressed with gzip.
"""

from __future__ import annotations

import gzip
import heapq
import json
import random
from collections import Counter
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ...proto.errors import Status, error

# What `conversations` aims at, measured on an hour of a chat service (12,031 requests, blocks of 512 tokens).
FIRST_BLOCKS_MEDIAN, FIRST_BLOCKS_SIGMA = 11.0, 1.2  # of a first turn, lognormal
MORE_BLOCKS_MEDIAN, MORE_BLOCKS_SIGMA = 2.2, 1.2  # that a further turn adds
BLOCKS_MAX = 247  # of a request
ANOTHER_TURN, LATER_TURN = 0.3, 0.55  # chance of a second turn; of one more after that
THINK_MEDIAN_S, THINK_SIGMA = 130.0, 1.1  # between the turns of a conversation, lognormal
REQUESTS_PER_SECOND = 3.4


class Request(NamedTuple):
    at_ms: int
    blocks: list[int]


def load(path: Path) -> list[Request]:
    """The requests of a trace. Raises INVALID for a file of another form."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt") as file:
            rows = (json.loads(line) for line in file)
            return [Request(int(row["timestamp"]), [int(block) for block in row["hash_ids"]]) for row in rows]
    except (KeyError, TypeError, ValueError) as failed:
        raise error(Status.INVALID, f"{path} is no trace with timestamp and hash_ids in each line: {failed}") from None


def conversations(requests: int, seed: int, *, per_second: float = REQUESTS_PER_SECOND) -> list[Request]:
    """A trace of so many requests: conversations that begin with the same system prompt (one block), grow turn by turn with pauses between,
    and mostly end after one."""
    chance = random.Random(seed)  # noqa: S311 -- no secret
    ids = count(1)
    trace: list[Request] = []
    due: list[tuple[float, int, list[int], int]] = []  # (second, tie, blocks so far, turns so far)
    now = 0.0
    turns_per_conversation = 1 + ANOTHER_TURN / (1 - LATER_TURN)
    while len(trace) < requests:
        if due and due[0][0] <= now:
            at, _, blocks, turns = heapq.heappop(due)
        else:
            now += chance.expovariate(per_second / turns_per_conversation)
            heapq.heappush(due, (now, next(ids), [0], 0))
            continue
        first = turns == 0
        median, sigma = (FIRST_BLOCKS_MEDIAN, FIRST_BLOCKS_SIGMA) if first else (MORE_BLOCKS_MEDIAN, MORE_BLOCKS_SIGMA)
        grown = round(median * chance.lognormvariate(0, sigma))
        # The last block of a turn was not full: the next turn has another one in its place.
        kept = blocks if first or len(blocks) == 1 else blocks[:-1]
        blocks = kept + [next(ids) for _ in range(min(max(1, grown), BLOCKS_MAX - len(kept)))]
        trace.append(Request(round(1000 * at), blocks))
        if len(blocks) < BLOCKS_MAX and chance.random() < (ANOTHER_TURN if first else LATER_TURN):
            pause = THINK_MEDIAN_S * chance.lognormvariate(0, THINK_SIGMA)
            heapq.heappush(due, (at + pause, next(ids), blocks, turns + 1))
    return trace


def statistics(trace: list[Request]) -> dict[str, float]:
    """What makes traces alike: requests, references, blocks, the hit ratio without limits, how many blocks come once."""
    times: Counter[int] = Counter()
    references = hits = 0
    for request in trace:
        references += len(request.blocks)
        for block in request.blocks:
            if not times[block]:
                break
            hits += 1
        times.update(request.blocks)
    lengths = sorted(len(request.blocks) for request in trace)
    return {
        "requests": len(trace),
        "references": references,
        "blocks": len(times),
        "hit_ratio_unlimited": round(hits / references, 4),
        "blocks_once": round(sum(1 for seen in times.values() if seen == 1) / len(times), 4),
        "length_p50": lengths[len(lengths) // 2],
        "length_p90": lengths[len(lengths) * 9 // 10],
    }
