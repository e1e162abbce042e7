"""Capabilities: issued to one client for one inode, checked by whoever has the key, good for a bounded time."""

import pytest

from emberfs.proto import capability
from emberfs.proto.capability import CAPABILITY_BYTES, VALID_EPOCHS, Rights
from emberfs.proto.errors import Status, StatusError

KEY = bytes(range(32))
CLIENT = b"c" * 16


def issued(**changes: object) -> bytes:
    arguments = {"client": CLIENT, "inode": 0x1234, "rights": Rights.READ, "epoch": 7} | changes
    return capability.issue(KEY, **arguments)  # type: ignore[arg-type]


def refusal(status: Status, **changes: object) -> None:
    arguments = {
        "key": KEY,
        "capability": issued(),
        "client": CLIENT,
        "inode": 0x1234,
        "rights": Rights.READ,
        "epoch": 7,
    } | changes
    with pytest.raises(StatusError) as refused:
        capability.check(**arguments)  # type: ignore[arg-type]
    assert refused.value.status is status


def test_a_capability_grants_what_it_was_issued_for() -> None:
    token = issued(rights=Rights.READ | Rights.WRITE)
    assert len(token) == CAPABILITY_BYTES
    for rights in (Rights.READ, Rights.WRITE, Rights.READ | Rights.WRITE):
        grant = capability.check(KEY, token, client=CLIENT, inode=0x1234, rights=rights, epoch=7)
        assert grant.inode == 0x1234


def test_the_format_is_stable() -> None:
    # Servers of neighbouring versions check each other's capabilities: these bytes change only with the version byte.
    assert issued().hex() == GOLDEN


GOLDEN = "010100000000000700000000000012346f2e53f36f65a670888368fe491a2080"


def test_another_inode_or_more_rights_are_refused() -> None:
    refusal(Status.PERMISSION_DENIED, inode=0x1235)
    refusal(Status.PERMISSION_DENIED, rights=Rights.WRITE)
    refusal(Status.PERMISSION_DENIED, rights=Rights.READ | Rights.WRITE)


def test_another_client_or_another_cluster_is_refused() -> None:
    refusal(Status.PERMISSION_DENIED, client=b"d" * 16)
    refusal(Status.PERMISSION_DENIED, key=bytes(32))


def test_every_flipped_bit_is_noticed() -> None:
    token = issued()
    for bit in range(len(token) * 8):
        damaged = bytearray(token)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(Status.PERMISSION_DENIED, capability=bytes(damaged))


@pytest.mark.parametrize("token", [b"", b"x", bytes(31), bytes(33)])
def test_a_wrong_length_is_refused(token: bytes) -> None:
    refusal(Status.PERMISSION_DENIED, capability=token)


def test_it_expires_by_epochs_and_never_by_a_clock() -> None:
    capability.check(KEY, issued(), client=CLIENT, inode=0x1234, rights=Rights.READ, epoch=7 + VALID_EPOCHS)
    refusal(Status.CAPABILITY_EXPIRED, epoch=7 + VALID_EPOCHS + 1)
    # A storage server that has not heard of the newer epoch yet takes it all the same: only the manager could have issued it.
    capability.check(KEY, issued(epoch=9), client=CLIENT, inode=0x1234, rights=Rights.READ, epoch=7)


def test_without_a_key_nothing_is_checked_and_the_client_tries_again() -> None:
    refusal(Status.UNAVAILABLE, key=b"")
