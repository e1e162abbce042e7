"""The kinds of events, as plain integers."""

from __future__ import annotations

from ...proto.gen.meta_pb2 import (
    EVENT_KIND_CHANGED,
    EVENT_KIND_CREATED,
    EVENT_KIND_LINKED,
    EVENT_KIND_REMOVED,
    EVENT_KIND_RENAMED,
    EVENT_KIND_WRITTEN,
)

CREATED, REMOVED, RENAMED = int(EVENT_KIND_CREATED), int(EVENT_KIND_REMOVED), int(EVENT_KIND_RENAMED)
LINKED, CHANGED, WRITTEN = int(EVENT_KIND_LINKED), int(EVENT_KIND_CHANGED), int(EVENT_KIND_WRITTEN)
