"""What an administrator's request means when it is sent again."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from emberfs.deploy.administration import Administration
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.gen.storage_pb2 import AddTargetReply, AddTargetRequest
from emberfs.proto.rpc import Method


class Lossy(Administration):
    """Storage servers that make what they are asked for, and whose first answer is lost."""

    def __init__(self) -> None:
        super().__init__("ember://127.0.0.1:9/")
        self.made: dict[tuple[int, str], int] = {}
        self.losing = True

    def _ask_node(self, number: int, method: Method, request: Message) -> Message:
        assert isinstance(request, AddTargetRequest)
        target = self.made.setdefault((number, request.path), len(self.made) + 1)
        if self.losing:
            self.losing = False
            raise error(Status.MAYBE_COMMITTED, "the connection broke")
        return AddTargetReply(target=target, path=request.path)


@pytest.mark.parametrize("folder", ["", "/disk"])
def test_a_target_whose_answer_was_lost_is_not_made_twice(folder: str) -> None:
    with Lossy() as connection:
        with pytest.raises(StatusError):
            connection.add_target(3, folder)
        assert connection.add_target(3, folder) == 1 and len(connection.made) == 1
        assert connection.add_target(3, folder) == 2, "the next one is another one"
        assert all(path.startswith(f"{folder}/target-" if folder else "target-") for _, path in connection.made)
