"""Links between storage nodes over which one end gets no answer, as that end says. Pure; time is handed in.

Both ends hold their leases, so only the link, or what is behind it (a disk that hangs), can be at fault. What is said holds for some
leases: so long nobody copies to a member over a link that was cut, and so long it counts in the question which end is cut off.
All of this lives in memory. Whoever takes over as manager hears it again from those who wait.
"""

from __future__ import annotations

from collections import defaultdict

HELD_LEASES = 10  # that a link which failed is not tried again by a sync: its writes would wait once more
HELD_LEASES_MAX = 80  # doubled up to this, each time that it fails soon after it was tried again
PROBED_LEASES = 2  # that the result of a mere probe holds


class _Link:
    __slots__ = ("length", "node", "told", "until")

    def __init__(self, node: int) -> None:
        self.node = node  # of the target at the other end
        self.until = self.length = 0.0
        self.told = False  # that it holds no more


class Links:
    """By the node that got no answer and the target that gave none. There are as many at most as pairs of members of chains."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease = lease_seconds
        self._links: dict[tuple[int, int], _Link] = {}

    def __bool__(self) -> bool:
        return bool(self._links)

    def failed(self, node: int, target: int, at: int, now: float, *, probed: bool) -> None:
        """`node` gets no answer from `target`, which is at the node `at`. `probed`: nothing waits for it."""
        link = self._links.setdefault((node, target), _Link(at))
        link.node, link.told = at, False
        if probed:
            link.until = max(link.until, now + PROBED_LEASES * self._lease)
            return
        if now >= link.until or not link.length:
            again = link.length and now < link.until + link.length
            longest = HELD_LEASES_MAX * self._lease
            link.length = min(2 * link.length, longest) if again else HELD_LEASES * self._lease
        link.until = now + link.length

    def cut(self, node: int, target: int, other_node: int, other_target: int, now: float) -> bool:
        """Whether either of two members has said so of the other one."""
        return self._holds(self._links.get((node, other_target)), now) or self._holds(
            self._links.get((other_node, target)), now
        )

    @staticmethod
    def _holds(link: _Link | None, now: float) -> bool:
        return link is not None and now < link.until

    def partners(self, now: float) -> dict[int, set[int]]:
        """Of each node, to which other ones its links are cut."""
        found: dict[int, set[int]] = defaultdict(set)
        for (begin, _), link in self._links.items():
            if now < link.until:
                found[begin].add(link.node)
                found[link.node].add(begin)
        return found

    def over(self, now: float) -> set[int]:
        """Nodes whose links hold no longer since the last call."""
        found: set[int] = set()
        for key, link in list(self._links.items()):
            if now >= link.until and not link.told:
                link.told = True
                found.add(link.node)
            if now >= link.until + link.length:
                del self._links[key]
        return found
