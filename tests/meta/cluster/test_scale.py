"""What a large cluster costs the manager: a scan of all chains, a look at all leases, and what a change sends to those who watch."""

from __future__ import annotations

import pytest

from emberfs.deploy.bench.manager import WATCHERS, best_of, delta_bytes, follow, made


def test_a_scan_of_all_chains_and_a_look_at_all_leases(capsys: pytest.CaptureFixture[str]) -> None:
    book, nodes = made(10_000, 500)
    scan = best_of(3, lambda: follow(book, nodes, set(book.nodes), 10.1))
    look = best_of(3, lambda: nodes.look(10.1))
    one = best_of(3, lambda: follow(book, nodes, {1}, 10.1))
    with capsys.disabled():
        print(
            f" [10,000 chains: scan {scan * 1000:.0f} ms, of one node {one * 1000:.2f} ms, look {look * 1000:.2f} ms] ",
            end="",
        )
    assert scan < 0.4 and look < 0.02 and one < 0.02  # a loaded or emulated machine; the figures are for people


def test_a_delta_to_a_thousand_watchers_is_as_large_as_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    """ "routing delta to 1,000 watchers: proportional to the change, not to the table" """
    small, changed = delta_bytes(500, 25)
    large, same = delta_bytes(10_000, 500)
    book, _ = made(10_000, 500)
    everything = book.routing()
    assert everything is not None
    with capsys.disabled():
        each = large // WATCHERS
        print(f" [{changed} of 10,000 chains changed: {each} bytes each of {everything.ByteSize():,}] ", end="")
    assert changed == same == 60
    assert large < 1.2 * small  # only the numbers in it are longer
    assert large / WATCHERS < 100 * changed
