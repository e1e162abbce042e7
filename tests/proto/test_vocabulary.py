"""Status table, identifiers, URLs: the words that every process shares."""

import json
import os
import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emberfs.proto import errors, ids, rpc, settings
from emberfs.proto.errors import Status, StatusError


def test_every_status_has_a_row_and_a_sentence():
    assert set(errors.TABLE) == set(Status)
    assert len({row.sentence for row in errors.TABLE.values()}) == len(errors.TABLE)


@pytest.mark.parametrize("status", [s for s in Status if s])
def test_errors_are_the_oserrors_that_python_programs_catch(status):
    made = errors.error(status, "what happened", "/path")
    assert isinstance(made, StatusError)
    assert isinstance(made, type(OSError(errors.TABLE[status].errno, "")))
    assert made.errno == errors.TABLE[status].errno
    again = pickle.loads(pickle.dumps(made))
    assert (again.status, str(again)) == (status, str(made))


def test_an_unknown_code_from_a_newer_peer_is_internal():
    assert errors.status_of(12345) is Status.INTERNAL


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_chunk_ids_pack_in_the_order_of_their_numbers(tenant, inode, index):
    key = ids.ChunkId(tenant, inode, index).pack()
    assert len(key) == ids.CHUNK_ID_BYTES == 16
    assert key == ids.chunk_key(inode, index, tenant)
    assert ids.ChunkId.unpack(key) == (tenant, inode, index)
    assert key == struct.pack(">H", tenant) + struct.pack(">Q", inode) + b"\0\0" + struct.pack(">I", index)


def test_channels_spread():
    used = {ids.channel_of(inode, index) for inode in range(1024, 1124) for index in range(100)}
    assert max(used) < ids.CHANNELS
    assert len(used) > ids.CHANNELS * 0.99


def test_method_numbers_are_permanent():
    numbers = {f"{m.service}.{m.name}": m.number for s in (rpc.CLUSTER, rpc.META, rpc.STORAGE) for m in s.methods}
    assert len(set(numbers.values())) == len(numbers)
    for name, number in {
        "ClusterManager.GetRouting": 257,
        "ClusterManager.Status": 262,
        "Meta.Stat": 513,
        "Meta.SyncNamespace": 527,
        "Storage.Read": 769,
        "Storage.Write": 770,
        "Storage.ReportCorruption": 776,
    }.items():
        assert numbers[name] == number


class TestUrls:
    def test_host_and_port(self):
        found = settings.parse_url("ember://node-1:9000/a/b%20c")
        assert found.addresses == ("tcp:node-1:9000",)
        assert found.path == "/a/b%20c"
        assert settings.parse_url("ember://[::1]/").addresses == (f"tcp:[::1]:{settings.PORT_DEFAULT}",)

    def test_default_cluster_comes_from_its_data_directory(self, tmp_path, monkeypatch):
        monkeypatch.delenv("EMBERFS_URL", raising=False)
        monkeypatch.setenv("EMBERFS_DATA", str(tmp_path))
        with pytest.raises(FileNotFoundError, match="emberfs up"):
            settings.parse_url("ember:///x")
        record = {"cluster": "c1", "addresses": ["unix:/run/meta.sock"], "secret_file": "s"}
        (tmp_path / settings.CLUSTER_FILE).write_text(json.dumps(record))
        for url in ("ember:///x/y?z#w", "/x/y?z#w"):
            assert settings.parse_url(url) == settings.Location(("unix:/run/meta.sock",), "/x/y?z#w", "c1", "s")
        monkeypatch.setenv("EMBERFS_URL", "ember://h:1/")
        assert settings.parse_url("ember:///x").addresses == ("tcp:h:1",)
        monkeypatch.delenv("EMBERFS_URL")
        monkeypatch.delenv("EMBERFS_DATA")
        assert settings.parse_url(settings.data_url(tmp_path, "/a b")).path == "/a b"
        assert settings.parse_url(settings.data_url(tmp_path)).cluster == "c1"
        monkeypatch.setenv("EMBERFS_DATA", str(tmp_path))
        (tmp_path / settings.CLUSTER_FILE).write_text("{")
        with pytest.raises(StatusError, match="damaged"):
            settings.parse_url("/x")

    @pytest.mark.parametrize("url", ["s3://b/k", "ember://user:pw@h/x", "ember://h:99999/x"])
    def test_bad_ones_are_refused(self, url):
        with pytest.raises(StatusError) as caught:
            settings.parse_url(url)
        assert caught.value.status is Status.INVALID
        assert "pw" not in str(caught.value)

    def test_time_scale(self, monkeypatch):
        monkeypatch.setenv("EMBERFS_TIME_SCALE", "8")
        assert settings.time_scale() == 8
        monkeypatch.setenv("EMBERFS_TIME_SCALE", "fast")
        with pytest.raises(StatusError, match="must be a number"):
            settings.time_scale()

    def test_client_lease(self, monkeypatch):
        monkeypatch.delenv("EMBERFS_CLIENT_LEASE", raising=False)
        assert settings.client_lease() == 60
        monkeypatch.setenv("EMBERFS_CLIENT_LEASE", "4.5")
        assert settings.client_lease() == 4.5
        for bad in ("1", "4000", "long"):
            monkeypatch.setenv("EMBERFS_CLIENT_LEASE", bad)
            with pytest.raises(StatusError, match="EMBERFS_CLIENT_LEASE"):
                settings.client_lease()


def test_boot_id_is_the_kernels():
    assert len(ids.boot_id()) == 36
    assert os.path.exists("/proc/sys/kernel/random/boot_id")
