"""Reading the cluster secret: only from a private file, never a short one."""

from pathlib import Path

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.settings import read_secret


def test_a_private_file_is_read_without_the_white_space(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef\n")
    file.chmod(0o600)
    assert read_secret(file) == b"0123456789abcdef"
    assert read_secret("") == b""


@pytest.mark.parametrize(
    ("content", "mode"), [("0123456789abcdef", 0o640), ("0123456789abcdef", 0o604), ("short\n", 0o600), ("", 0o600)]
)
def test_what_is_no_secret_is_refused(tmp_path: Path, content: str, mode: int) -> None:
    file = tmp_path / "secret"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(StatusError) as refused:
        read_secret(file)
    assert refused.value.status is Status.UNAUTHENTICATED and str(file) in str(refused.value.strerror)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StatusError) as refused:
        read_secret(tmp_path / "none")
    assert refused.value.status is Status.UNAUTHENTICATED
