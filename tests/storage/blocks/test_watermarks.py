"""When eviction begins and ends, and how much room it leaves for what is put until the next checkpoint."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given, settings

from emberfs.storage.blocks.watermarks import HEADROOM_PART_MAX, HEADROOM_PART_MIN, Watermarks

CAPACITY = 1 << 20


def test_nothing_goes_while_there_is_room() -> None:
    marks = Watermarks(CAPACITY)
    assert marks.high == CAPACITY - CAPACITY // HEADROOM_PART_MIN
    assert marks.excess(marks.high, 0) == 0
    assert marks.excess(marks.high + 1, 0) == marks.high + 1 - marks.low


def test_eviction_goes_on_to_the_low_watermark() -> None:
    marks = Watermarks(CAPACITY)
    middle = (marks.high + marks.low) // 2
    assert marks.excess(middle, 0) == 0, "not begun"
    assert marks.excess(marks.high + 1, 0) > 0
    assert marks.excess(middle, 0) == middle - marks.low, "begun, and not done"
    assert marks.excess(marks.low, 0) == 0
    assert marks.excess(middle, 0) == 0, "done"


def test_what_a_checkpoint_will_bring_back_is_not_evicted_again() -> None:
    marks = Watermarks(CAPACITY)
    excess = marks.excess(marks.high + 1, 0)
    assert marks.excess(marks.high + 1, excess) == 0


@given(rate=st.integers(0, CAPACITY // 8), seconds=st.integers(60, 300))
@settings(max_examples=100, deadline=None)
def test_puts_find_room_at_any_steady_rate(rate: int, seconds: int) -> None:
    """Puts of `rate` bytes between two checkpoints; evicted at once, free after the next checkpoint. Once the headroom has grown to the
    rate nothing is refused."""
    marks = Watermarks(CAPACITY)
    used = waiting = retired = 0
    refused = []
    for second in range(seconds):
        for _ in range(8):
            piece = rate // 8
            if used + piece > CAPACITY:
                refused.append(second)
            else:
                used += piece
            excess = marks.excess(used, waiting + retired)
            retired += excess
        used -= waiting  # the checkpoint that passes frees what was retired before it began
        waiting, retired = retired, 0
    filled = CAPACITY // max(1, rate)
    assert all(second <= filled + 8 for second in refused)


def test_a_burst_is_forgotten_and_does_not_feed_on_itself() -> None:
    """What is evicted to make the headroom greater is retired too, but was not put."""
    marks = Watermarks(CAPACITY)
    used, waiting, retired = CAPACITY - CAPACITY // 16, 0, 0
    burst, rate = CAPACITY // 20, CAPACITY // 1000
    for second in range(200):
        for _ in range(8):
            used += burst // 8 if second == 0 else rate // 8
            retired += marks.excess(used, waiting + retired)
        used -= waiting
        waiting, retired = retired, 0
        assert marks.high >= CAPACITY - 5 * burst // 2
    assert marks.high >= CAPACITY - CAPACITY // 30


@given(st.lists(st.tuples(st.integers(0, CAPACITY), st.integers(0, CAPACITY)), max_size=100))
def test_at_least_three_quarters_hold_blocks(looks: list[tuple[int, int]]) -> None:
    marks = Watermarks(CAPACITY)
    for used, part in looks:
        retired = min(used, part)
        excess = marks.excess(used, retired)
        assert 0 <= excess <= used - retired
        assert marks.high >= CAPACITY - CAPACITY // HEADROOM_PART_MAX
        assert marks.low < marks.high
