"""Copying files when the cluster does not answer."""

from __future__ import annotations

import emberfs
from emberfs.deploy.copying import IN_VAIN_MAX, Item, Plan, Progress, Put, carry_out
from emberfs.deploy.local import LocalCluster
from emberfs.proto.errors import Status, error

FILES = 100


class Silent(Put):
    """Files get no answer, but for every `answered`th."""

    answered = 0
    tried = 0

    def file(self, item: Item, progress: Progress) -> None:
        self.tried += 1
        if not self.answered or item.size % self.answered:
            raise error(Status.DEADLINE, "gave up after 30 s")


def files() -> Plan:
    return Plan(files=[Item(f"/here/{i}", f"/there/{i}", size=i) for i in range(FILES)])


def test_after_some_files_in_vain_the_rest_is_not_tried(cluster: LocalCluster) -> None:
    with emberfs.connect(cluster.url) as client:
        way = Silent(client)
        failures = carry_out(files(), way)
    assert len(failures) == IN_VAIN_MAX + 1 and way.tried < FILES
    assert failures[-1] == f"no answer for {IN_VAIN_MAX} files in a row: the rest was not tried"


def test_where_some_get_an_answer_all_are_tried(cluster: LocalCluster) -> None:
    """One chain of several is out: what lies on the others is copied."""
    with emberfs.connect(cluster.url) as client:
        way = Silent(client)
        way.answered = 2
        failures = carry_out(files(), way, jobs=1)
    assert way.tried == FILES and len(failures) == FILES // 2
