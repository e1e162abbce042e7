"""Trash, quotas and events through the client: whatever is asked for is answered, or refused with a status."""

from __future__ import annotations

import pytest

from emberfs.client.blocking import Client
from emberfs.meta import keys
from emberfs.proto.errors import Status, StatusError

from .world import World


@pytest.mark.parametrize("entry", ["", "x", "12", "12-", "-12", "-1--1", "1-" + "f" * 17, "f" * 17 + "-1"])
def test_what_is_no_entry_of_the_trash(client: Client, entry: str) -> None:
    for ask in (lambda: client.restore(entry), lambda: client.purge([entry])):
        with pytest.raises(StatusError) as refused:
            ask()
        assert refused.value.status is Status.INVALID


@pytest.mark.parametrize(
    "what",
    [
        {"user": 1, "bytes_max": -1},
        {"user": 1, "bytes_max": 1 << 64},
        {"group": 1, "inodes_max": 1 << 63},
        {"user": -1},
        {"group": (1 << 32) - 1},
        {"user": 1, "group": 1},
        {},
    ],
)
def test_what_is_no_quota(client: Client, what: dict[str, int]) -> None:
    with pytest.raises(StatusError) as refused:
        client.set_quota(**what)
    assert refused.value.status is Status.INVALID
    assert client.quotas() == []


def test_a_wait_for_events_of_any_length(client: Client) -> None:
    client.mkdir("/d")
    watch = client.events("/", wait=-1.0)
    assert next(watch) is None
    client.mkdir("/e")
    assert (event := next(watch)) is not None and event.path == "/e"


def test_events_are_told_from_the_call_on(client: Client) -> None:
    watch = client.events("/", wait=0.0)
    client.mkdir("/before-the-first-look")
    assert (event := next(watch)) is not None and event.path == "/before-the-first-look"
    with pytest.raises(FileNotFoundError):
        client.events("/missing")


def test_lost_events_are_told(world: World, client: Client) -> None:
    watch = client.events("/", wait=0.0)
    assert next(watch) is None

    async def forget() -> None:
        txn = world.namespace.engine.begin()
        txn.add(keys.EVENT_LOG, 1)
        await txn.commit()

    world.run(forget())
    assert [event and event.kind for event in (next(watch), next(watch))] == ["lost", None]
    client.mkdir("/e")
    assert (event := next(watch)) is not None and event.kind == "created"
