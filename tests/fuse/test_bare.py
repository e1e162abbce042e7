"""Which inodes have nothing beside their attributes: known for as long as the kernel may believe these, and not after a change here."""

from __future__ import annotations

from emberfs.fuse.bare import BARE_MAX, Bare


def test_it_is_known_for_as_long_as_attributes_are_believed() -> None:
    bare = Bare(1.0)
    assert not bare.known(5, 10.0)
    bare.told(5, 10.0, extended=False)
    assert bare.known(5, 10.9)
    assert not bare.known(5, 11.1)
    bare.told(5, 12.0, extended=False)
    bare.told(5, 12.1, extended=True)
    assert not bare.known(5, 12.2)


def test_a_reply_that_was_under_way_says_nothing_about_a_later_change() -> None:
    bare = Bare(1.0)
    bare.told(5, 10.0, extended=False)
    bare.dress(5)
    assert not bare.known(5, 10.1)
    bare.told(5, 10.2, extended=False)  # asked before, answered after
    assert not bare.known(5, 10.3)


def test_nothing_is_believed_where_the_kernel_believes_nothing() -> None:
    bare = Bare(0.0)
    bare.told(5, 10.0, extended=False)
    assert not bare.known(5, 10.0)


def test_it_is_bounded() -> None:
    bare = Bare(1.0)
    for inode in range(1, 3 * BARE_MAX):
        bare.told(inode, 10.0, extended=False)
        bare.dress(inode + 10 * BARE_MAX)
    assert len(bare._until) <= BARE_MAX
    assert len(bare._dressed) <= BARE_MAX
