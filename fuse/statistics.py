"""What a mount has done so far: per operation how many, how many failed, how long; bytes; notifications. Counting costs two list
increments a request."""

from __future__ import annotations

from dataclasses import dataclass, field

from .protocol import Opcode

OPCODES = max(Opcode) + 1
LATER = OPCODES  # the row of operations that we do not know, of newer kernels


def _row() -> list[int]:
    return [0] * (OPCODES + 1)


@dataclass(slots=True)
class Statistics:
    """Indexed by opcode."""

    requests: list[int] = field(default_factory=_row)
    errors: list[int] = field(default_factory=_row)  # answered with an errno
    seconds: list[float] = field(default_factory=lambda: [0.0] * (OPCODES + 1))  # from read to answer, all together
    longest: list[float] = field(default_factory=lambda: [0.0] * (OPCODES + 1))  # of them, the one that took longest
    inline: int = 0  # answered at once, without a task
    interrupted: int = 0  # INTERRUPTs that found their request at work
    abandoned: int = 0  # answered EINTR while the operation went on
    bytes_read: int = 0  # payload of READ
    bytes_written: int = 0  # payload of WRITE

    def rows(self) -> list[tuple[str, int, int, float, float]]:
        """(operation, requests, errors, seconds in all, seconds of the longest) of those that came."""
        names = {opcode.value: opcode.name.lower() for opcode in Opcode}
        return [
            (names.get(opcode, "other"), count, self.errors[opcode], self.seconds[opcode], self.longest[opcode])
            for opcode, count in enumerate(self.requests)
            if count
        ]
