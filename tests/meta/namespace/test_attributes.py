"""chmod, chown and utimes: who may, and what else changes."""

from __future__ import annotations

from typing import Any

import pytest

from emberfs.meta.namespace.access import ROOT, Credentials
from emberfs.proto.errors import Status, StatusError

from .world import ALICE, BOB, CAROL, World

GROUP = Credentials(ALICE.uid, ALICE.gid, (2000,))


@pytest.mark.parametrize(
    ("who", "change", "outcome"),
    [
        (ALICE, {"mode": 0o600}, {"mode": 0o600}),
        (ROOT, {"mode": 0o6777}, {"mode": 0o6777}),
        (BOB, {"mode": 0o600}, Status.NOT_PERMITTED),
        (ALICE, {"mode": 0o2755}, {"mode": 0o2755}),
        (ALICE, {"mode": 0o107777}, {"mode": 0o7777}),
        (ROOT, {"uid": BOB.uid}, {"uid": BOB.uid, "mode": 0o755}),  # set-id bits go, even root's
        (ROOT, {"uid": BOB.uid, "gid": 5}, {"uid": BOB.uid, "gid": 5}),
        (ALICE, {"uid": BOB.uid}, Status.NOT_PERMITTED),
        (ALICE, {"uid": ALICE.uid}, {"uid": ALICE.uid, "mode": 0o755}),
        (ALICE, {"gid": 2000}, Status.NOT_PERMITTED),
        (GROUP, {"gid": 2000}, {"gid": 2000, "mode": 0o755}),
        (BOB, {"gid": 2000}, Status.NOT_PERMITTED),
        (ROOT, {"uid": (1 << 32) - 1}, Status.INVALID),
        (ALICE, {"mtime_ns": -5, "atime_ns": 7}, {"mtime_ns": -5, "atime_ns": 7, "mode": 0o6755}),
        (ALICE, {"mtime_ns": (1 << 62)}, {"mtime_ns": 1 << 62}),
        (BOB, {"mtime_ns": 5}, Status.NOT_PERMITTED),
        (BOB, {"mtime_now": True, "atime_now": True}, Status.PERMISSION_DENIED),
        (CAROL, {"mtime_now": True, "atime_now": True}, Status.PERMISSION_DENIED),
        (ALICE, {"mtime_now": True, "atime_now": True}, {}),
        (ALICE, {"chunk_size": 1 << 16}, Status.NOT_DIRECTORY),
        (BOB, {}, Status.NOT_PERMITTED),  # chown(-1, -1) takes set-id bits away
        (ALICE, {}, {"mode": 0o755}),
    ],
)
async def test_change(world: World, who: Credentials, change: dict[str, Any], outcome: dict[str, int] | Status) -> None:
    await world.touch("/f")
    await world.set("/f", uid=ALICE.uid, gid=ALICE.gid)
    before = await world.set("/f", mode=0o6755)
    if isinstance(outcome, Status):
        with pytest.raises(StatusError) as caught:
            await world.set("/f", who, **change)
        assert caught.value.status is outcome
        assert await world.stat("/f") == before
        return
    after = await world.set("/f", who, **change)
    assert {name: getattr(after, name) for name in outcome} == outcome
    assert after == await world.stat("/f")
    assert after.ctime_ns > before.ctime_ns
    assert after.change > before.change


async def test_whoever_may_write_may_touch_but_not_set_times(world: World) -> None:
    await world.touch("/f", mode=0o666)
    touched = await world.set("/f", BOB, mtime_now=True, atime_now=True)
    assert touched.mtime_ns == touched.atime_ns == touched.ctime_ns
    for change in ({"mtime_now": True}, {"mtime_now": True, "atime_ns": 1}):
        with pytest.raises(StatusError) as caught:
            await world.set("/f", BOB, **change)
        assert caught.value.status is Status.NOT_PERMITTED


async def test_sgid_needs_membership(world: World) -> None:
    await world.touch("/f")
    await world.set("/f", uid=ALICE.uid, gid=3000)
    assert (await world.set("/f", ALICE, mode=0o2755)).mode == 0o755


async def test_symlinks_have_owners_and_times_but_no_mode(world: World) -> None:
    await world.touch("/f")
    await world.symlink("/s", "f")
    assert (await world.set("/s", follow=False, uid=5, mtime_ns=9)).uid == 5
    assert (await world.stat("/f")).uid == 0
    with pytest.raises(StatusError) as caught:
        await world.set("/s", follow=False, mode=0o600)
    assert caught.value.status is Status.UNSUPPORTED
    assert (await world.set("/s", mode=0o600)).inode == (await world.stat("/f")).inode


async def test_directory_keeps_its_set_id_bits_and_sets_defaults(world: World) -> None:
    assert (await world.mkdir("/d", mode=0o7755)).mode == 0o1755  # mkdir(2) knows no set-id bits
    await world.set("/d", mode=0o2755)
    assert (await world.set("/d", gid=5)).mode == 0o2755
    await world.set("/d", chunk_size=1 << 20, stripe=2)
    assert (await world.touch("/d/f")).layout.stripe == 2
    await world.set("/d", stripe=0)
    assert (await world.touch("/d/g")).layout.stripe == 3
    with pytest.raises(StatusError) as caught:
        await world.set("/d", chunk_size=12345)
    assert caught.value.status is Status.INVALID
