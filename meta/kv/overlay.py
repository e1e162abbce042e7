"""What a transaction has written and read so far, without any I/O: its own writes laid over what an engine reads, its conflict sets,
its size. For engines whose store does none of that itself; the in-memory model does it in its own, simpler way.

Writes are kept in the form that a commit applies: ranges that were cleared, then keys with a known value (None: deleted), then
blind changes of values that nobody has read, then the versionstamped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet

from ...proto.errors import StatusError
from . import limits
from .engine import KEY_BYTES_MAX, KEYS_END, TRANSACTION_BYTES_MAX, Pair

Blind = tuple[bool, int]  # (whether it is a `max` and not an `add`, its number)


class Unknown:
    """The type of `UNKNOWN`."""


UNKNOWN = Unknown()  # the transaction's own writes do not tell the value


class Overlay:
    """The half of a transaction that an engine need not write: it inherits from this. Any refusal spends the transaction."""

    __slots__ = (
        "actor",
        "blind",
        "cleared",
        "extra_writes",
        "read_keys",
        "read_ranges",
        "size",
        "spent",
        "stamped",
        "writes",
    )

    def __init__(self) -> None:
        self.writes: dict[bytes, bytes | None] = {}
        self.blind: dict[bytes, list[Blind]] = {}  # never a key of `writes` or in `cleared`
        self.cleared: list[Pair] = []  # begin, end; what was put after is in `writes`
        self.stamped: list[tuple[bytes, bytes, bytes]] = []  # prefix, suffix, value
        self.extra_writes: set[bytes] = set()  # in the write set without being written
        self.read_keys: set[bytes] = set()
        self.read_ranges: list[Pair] = []
        self.size = 0  # bytes that count against TRANSACTION_BYTES_MAX
        self.spent = False
        self.actor: object = None  # for those who watch commits (`engine.Watched`)

    # Writing.

    # The limits are looked at one by one only where something may be wrong: these run ten times for every request.

    def put(self, key: bytes, value: bytes) -> None:
        size = len(key) + len(value)
        if self.spent or size > KEY_BYTES_MAX or key >= KEYS_END:
            self._accept(limits.key_refusal(key) or limits.value_refusal(key, value))
        self.size += size
        self.writes[key] = value
        if self.blind:
            self.blind.pop(key, None)

    def delete(self, key: bytes) -> None:
        if self.spent or len(key) > KEY_BYTES_MAX or key >= KEYS_END:
            self._accept(limits.key_refusal(key))
        self.size += len(key)
        self.writes[key] = None
        if self.blind:
            self.blind.pop(key, None)

    def delete_range(self, begin: bytes, end: bytes) -> None:
        self._accept(limits.range_refusal(begin, end))
        self.size += len(begin) + len(end)
        if begin >= end:
            return
        for own in (self.writes, self.blind):
            for key in [key for key in own if begin <= key < end]:
                del own[key]
        self.cleared.append((begin, end))

    def add(self, key: bytes, delta: int) -> None:
        if self.spent or len(key) > KEY_BYTES_MAX or key >= KEYS_END or abs(delta) > limits.COUNTER_MAX:
            self._accept(limits.key_refusal(key) or limits.counter_refusal(key, delta))
        if key in self.blind or key in self.writes or self.cleared:
            self.change(key, (False, delta))
        else:
            self.size += len(key) + 8
            self.blind[key] = [(False, delta)]

    def max(self, key: bytes, value: int) -> None:
        if self.spent or len(key) > KEY_BYTES_MAX or key >= KEYS_END or not 0 <= value <= limits.COUNTER_MAX:
            self._accept(limits.key_refusal(key) or limits.counter_refusal(key, value, 0))
        if key in self.blind or key in self.writes or self.cleared:
            self.change(key, (True, value))
        else:
            self.size += len(key) + 8
            self.blind[key] = [(True, value)]

    def change(self, key: bytes, change: Blind) -> None:
        """A blind change of a counter, which has been checked."""
        self.size += len(key) + 8
        if key in self.writes:
            self.writes[key] = changed(self.writes[key], (change,))
        elif self.cleared and self._is_cleared(key):
            self.writes[key] = changed(None, (change,))
        elif (earlier := self.blind.get(key)) is None:
            self.blind[key] = [change]
        elif (both := _combined(earlier[-1], change)) is not None:
            earlier[-1] = both
        else:
            earlier.append(change)

    def put_versionstamped(self, prefix: bytes, suffix: bytes, value: bytes) -> None:
        key = prefix + bytes(limits.STAMP_BYTES) + suffix
        self._accept(limits.key_refusal(key) or limits.value_refusal(key, value))
        self.size += len(key) + len(value)
        self.stamped.append((prefix, suffix, value))

    # Conflict sets.

    def conflict_read(self, key: bytes) -> None:
        self._accept(limits.key_refusal(key))
        if key not in self.read_keys:
            self.size += len(key)
            self.read_keys.add(key)

    def read_range(self, begin: bytes, end: bytes) -> None:
        self.size += len(begin) + len(end)
        self.read_ranges.append((begin, end))

    def conflict_write(self, key: bytes) -> None:
        self._accept(limits.key_refusal(key))
        self.size += len(key)
        self.extra_writes.add(key)

    def is_read_only(self) -> bool:
        return not (self.writes or self.blind or self.cleared or self.stamped or self.extra_writes)

    def overtaken_by(self, keys: AbstractSet[bytes], ranges: list[Pair]) -> bytes | None:
        """A key, or the begin of a range, of another's write set that lies in this read set; None if there is none."""
        if not self.read_keys.isdisjoint(keys):
            return min(self.read_keys & keys)
        for begin, end in self.read_ranges:
            for key in keys:
                if begin <= key < end:
                    return key
        for begin, end in ranges:
            for key in self.read_keys:
                if begin <= key < end:
                    return key
            for read_begin, read_end in self.read_ranges:
                if begin < read_end and read_begin < end:
                    return begin
        return None

    # Reading: own writes over what the engine has.

    def look(self, key: bytes, snapshot: bool) -> bytes | Unknown | None:
        """Begin to read a key: its own value, or UNKNOWN, and then it is in the read set (unless `snapshot`)."""
        self._accept(limits.key_refusal(key))
        known = self.own(key)
        if isinstance(known, Unknown) and not snapshot and key not in self.read_keys:
            self.size += len(key)
            self.read_keys.add(key)
        return known

    def look_many(self, keys: Iterable[bytes], snapshot: bool) -> None:
        """`look` for several keys, before this transaction has written anything: none of them has a value of its own."""
        for key in keys:
            if len(key) > KEY_BYTES_MAX or key >= KEYS_END:
                self._accept(limits.key_refusal(key))
            if not snapshot and key not in self.read_keys:
                self.size += len(key)
                self.read_keys.add(key)

    def look_range(self, begin: bytes, end: bytes, limit: int) -> None:
        """Begin to scan."""
        self._accept(limits.range_refusal(begin, end) or limits.count_refusal(limit))

    def own(self, key: bytes) -> bytes | Unknown | None:
        """The value as far as this transaction's writes alone tell it."""
        if key in self.writes:
            return self.writes[key]
        if self.cleared and self._is_cleared(key):
            return None
        return UNKNOWN

    def over(self, key: bytes, value: bytes | None) -> bytes | None:
        """What a key whose own value is UNKNOWN has, given the engine's value."""
        return changed(value, self.blind[key]) if key in self.blind else value

    def touches(self, begin: bytes, end: bytes) -> bool:
        """Whether own writes change what a scan of this range finds."""
        if any(a < end and begin < b for a, b in self.cleared):
            return True
        return any(begin <= key < end for own in (self.writes, self.blind) for key in own)

    def merge(self, stored: Iterable[Pair], begin: bytes, end: bytes, reverse: bool) -> Iterator[Pair]:
        """The engine's pairs of a range, in order, with own writes applied."""
        keys = [key for own in (self.writes, self.blind) for key in own if begin <= key < end]
        if self.cleared:
            stored = (pair for pair in stored if not self._is_cleared(pair[0]))
        return replaced(stored, keys, self._written, reverse)

    def _written(self, key: bytes, stored: bytes | None) -> bytes | None:
        return self.writes[key] if key in self.writes else self.over(key, stored)

    def _is_cleared(self, key: bytes) -> bool:
        return any(begin <= key < end for begin, end in self.cleared)

    # The end.

    def spend(self) -> None:
        """The transaction is being committed. Raises INVALID when it was spent before, TOO_LARGE over the limit."""
        self._accept(limits.too_large(self.size) if self.size > TRANSACTION_BYTES_MAX else None)
        self.spent = True

    def _accept(self, refusal: StatusError | None) -> None:
        if self.spent:
            raise limits.spent()
        if refusal is not None:
            self.spent = True
            raise refusal


def replaced(
    stored: Iterable[Pair], keys: Iterable[bytes], value: Callable[[bytes, bytes | None], bytes | None], reverse: bool
) -> Iterator[Pair]:
    """Pairs in order, with `value(key, stored value)` for each of `keys`, stored or not; None leaves the key out."""
    stack = sorted(keys, reverse=not reverse)  # the next one is the last
    for key, found in stored:
        while stack and (stack[-1] > key if reverse else stack[-1] < key):
            missing = stack.pop()
            if (other := value(missing, None)) is not None:
                yield missing, other
        if not stack or stack[-1] != key:
            yield key, found
        elif (other := value(stack.pop(), found)) is not None:
            yield key, other
    while stack:
        missing = stack.pop()
        if (other := value(missing, None)) is not None:
            yield missing, other


def _combined(earlier: Blind, later: Blind) -> Blind | None:
    """Two blind changes of one counter as one, where that can be: a batch changes its directory's counters with every name."""
    if earlier[0] != later[0]:
        return None
    if earlier[0]:
        return (True, max(earlier[1], later[1]))
    total = earlier[1] + later[1]
    return (False, total) if abs(total) <= limits.COUNTER_MAX else None


def changed(value: bytes | None, changes: Iterable[Blind]) -> bytes:
    """A counter after blind changes."""
    number = limits.counter(value) if value is not None else 0
    for is_max, by in changes:
        if is_max:
            number = by if by > number else number
        else:
            number += by
            if not -limits.COUNTER_MAX <= number <= limits.COUNTER_MAX:
                number = limits.wrapped(number)
    return limits.counter_value(number)
