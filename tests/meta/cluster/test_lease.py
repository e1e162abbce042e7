"""Leases run out in order, and a renewal moves one to the end."""

from emberfs.meta.cluster.lease import Leases


def test_leases_run_out_when_they_are_not_renewed() -> None:
    leases = Leases(60.0)
    leases.renew(b"a", 0.0)
    leases.renew(b"b", 10.0)
    leases.renew(b"a", 20.0)
    assert leases.expired(69.9) == []
    assert leases.expired(70.0) == [b"b"]
    assert leases.expired(80.0) == [b"b", b"a"]
    leases.forget(b"b")
    leases.forget(b"b")
    assert leases.expired(80.0) == [b"a"]
    assert b"a" in leases and b"b" not in leases and len(leases) == 1
