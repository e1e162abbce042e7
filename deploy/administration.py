"""An administrator's connection to a cluster: what the manager and the storage servers do for nobody else.

Every change names what it expects to find (a chain's version, a target in no chain) or to make (a target's directory), so a request
whose answer was lost may simply be sent again, or the state be looked at: nothing here happens twice.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from types import TracebackType

from google.protobuf.message import Message

from ..proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ..proto.drivers.blocking import BlockingEnvironment
from ..proto.env import Call, drive
from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import (
    BackUpMetadataReply,
    BackUpMetadataRequest,
    ChainMembers,
    ChangeChainRequest,
    CreateChainsRequest,
    FreezeMetadataRequest,
    Node,
    RemoveNodeRequest,
    SetNodeRequest,
    SetTargetRequest,
    StatusReply,
    StatusRequest,
    Target,
)
from ..proto.gen.common_pb2 import Chain
from ..proto.gen.storage_pb2 import AddTargetRequest, DropTargetRequest
from ..proto.ids import boot_id, new_u64
from ..proto.routing import UNIX
from ..proto.rpc import CLUSTER, STORAGE, Method
from ..proto.settings import parse_url, time_scale

ATTEMPT_SECONDS = 5.0  # one request; scaled
PATIENCE_SECONDS = 15.0  # a manager that fails over is back by then; scaled
RETRY_SECONDS = 0.1  # between attempts; scaled
BACKUP_SECONDS = 600.0  # a copy of the metadata is made; scaled
FORMAT_SECONDS = 60.0  # a target is formatted or deleted; scaled
POOL_BYTES = 1 << 20  # no chunk bytes are moved


class Administration:
    """Made for the cluster that `url` names (see proto/settings.py); close it at the end. Raises NOT_FOUND where no cluster is.

    Methods raise StatusError: UNAUTHENTICATED unless this process runs as the servers' user or has the cluster's secret, UNAVAILABLE
    when nobody answers, and the refusals of the servers, which say why.
    """

    def __init__(self, url: str = "ember:///", patience: float = PATIENCE_SECONDS) -> None:
        location = parse_url(url)
        self._addresses = list(location.addresses)
        self._patience = patience * time_scale()
        self._nodes: dict[int, Node] = {}  # as of the last status
        self._named: dict[
            tuple[int, str, int], str
        ] = {}  # (node, folder, table) -> target asked for and not answered yet
        self._env = BlockingEnvironment(
            cluster=location.cluster, secret_file=location.secret_file, acts_for_others=True, pool_bytes=POOL_BYTES
        )

    def __enter__(self) -> Administration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._env.close()

    def now(self) -> float:
        return self._env.now()

    def sleep(self, seconds: float) -> None:
        drive(self._env.sleep(seconds))

    def status(self) -> StatusReply:
        """All that the manager knows."""
        reply = self._ask_manager(CLUSTER.Status, StatusRequest())
        assert isinstance(reply, StatusReply)
        self._nodes = {node.id: node for node in reply.routing.nodes}
        return reply

    def create_chains(self, chains: Sequence[Sequence[int]], table: int = TABLE_OF_FILES) -> list[int]:
        """New chains over these targets, heads first, for this chain table; their ids."""
        request = CreateChainsRequest(chains=[ChainMembers(targets=targets) for targets in chains], table=table)
        return list(self._ask_manager(CLUSTER.CreateChains, request).chains)  # type: ignore[attr-defined]

    def change_chain(self, chain: int, version: int = 0, *, add: int = 0, remove: int = 0, revive: int = 0) -> Chain:
        """One member more or less, or one that serves although it may lack what the others had."""
        request = ChangeChainRequest(chain=chain, version=version, add=add, remove=remove, revive=revive)
        changed = self._ask_manager(CLUSTER.ChangeChain, request).chain  # type: ignore[attr-defined]
        assert isinstance(changed, Chain)
        return changed

    def set_target(self, target: int, *, disabled: bool) -> Target:
        """Take a target out of service, or back in."""
        request = SetTargetRequest(target=target, disabled=disabled)
        return self._ask_manager(CLUSTER.SetTarget, request).target  # type: ignore[attr-defined,no-any-return]

    def set_node(self, node: int, *, draining: bool) -> Node:
        """Say that a node shall be emptied, or be used again."""
        request = SetNodeRequest(node=node, draining=draining)
        return self._ask_manager(CLUSTER.SetNode, request).node  # type: ignore[attr-defined,no-any-return]

    def remove_node(self, node: int) -> None:
        """Forget a node that no chain uses any more."""
        self._ask_manager(CLUSTER.RemoveNode, RemoveNodeRequest(node=node))

    def back_up_metadata(self) -> BackUpMetadataReply:
        """One more copy of the metadata into the chunks, now. Raises UNSUPPORTED where a database of its own holds it."""
        made = self._ask_manager(CLUSTER.BackUpMetadata, BackUpMetadataRequest(), BACKUP_SECONDS)
        assert isinstance(made, BackUpMetadataReply)
        return made

    def freeze_metadata(self) -> str:
        """A copy of the embedded engine beside it, on the server's disk; its path. Whoever asked deletes it."""
        frozen = self._ask_manager(CLUSTER.FreezeMetadata, FreezeMetadataRequest(), FORMAT_SECONDS)
        return str(frozen.path)  # type: ignore[attr-defined]

    def add_target(self, node: int, folder: str = "", table: int = TABLE_OF_FILES) -> int:
        """Format one more target in a storage process, in this folder ("": beside its first one), for chains of this table; its number.

        Without an answer it may be there or not: asked again, the same one is meant.
        """
        prefix = "kv" if table == TABLE_OF_BLOCKS else "target"
        path = self._named.setdefault((node, folder, table), posixpath.join(folder, f"{prefix}-{new_u64():016x}"))
        added = self._ask_node(node, STORAGE.AddTarget, AddTargetRequest(path=path, table=table))
        del self._named[node, folder, table]
        return int(added.target)  # type: ignore[attr-defined]

    def drop_target(self, node: int, target: int) -> None:
        """Delete a target that is in no chain, with all that it holds."""
        self._ask_node(node, STORAGE.DropTarget, DropTargetRequest(target=target))

    def _ask_manager(self, method: Method, request: Message, seconds: float = ATTEMPT_SECONDS) -> Message:
        """The answer of whichever manager answers."""
        begin = self._env.now()
        while True:
            address = self._addresses[0]
            try:
                return self._call(address, method, request, seconds * time_scale())
            except StatusError as failed:
                tired = self._env.now() - begin >= self._patience
                if tired or not (failed.retryable or failed.status is Status.DEADLINE):
                    raise
            self._addresses.append(self._addresses.pop(0))
            self.sleep(RETRY_SECONDS * time_scale())

    def _ask_node(self, number: int, method: Method, request: Message) -> Message:
        node = self._nodes.get(number) or {n.id: n for n in self.status().routing.nodes}.get(number)
        if node is None:
            raise error(Status.NOT_FOUND, f"there is no node {number}")
        same_host = node.host == boot_id()
        addresses = [a for a in node.addresses if same_host or not a.startswith(UNIX)]
        if not addresses:
            raise error(
                Status.UNAVAILABLE,
                f"node {node.id} ({node.name}) listens on Unix sockets of its own host only: run this command there",
            )
        return self._call(addresses[0], method, request, FORMAT_SECONDS * time_scale())

    def _call(self, address: str, method: Method, request: Message, seconds: float) -> Message:
        reply = drive(self._env.call(Call(address, method, request, seconds)))
        assert isinstance(reply, Message)
        return reply
