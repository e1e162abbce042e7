"""Runs the command line as a user does: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

SECONDS_MAX = 280  # of one command: benchmarks on a loaded machine; less than pytest gives a test


@dataclass
class Result:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Command:
    """`run("ls", "-l", "/")` must succeed; `fail(code, ...)` must fail with that exit code and say something."""

    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str | bytes, data: bytes = b"") -> Result:
        result = self.any(*arguments, data=data)
        assert result.code == 0, (arguments, result)
        return result

    def fail(self, code: int, *arguments: str | bytes, data: bytes = b"") -> str:
        result = self.any(*arguments, data=data)
        assert result.code == code, (arguments, result)
        assert "Traceback" not in result.err
        return result.err

    def any(self, *arguments: str | bytes, data: bytes = b"") -> Result:
        environment = {**os.environ, "COLUMNS": "200", **self.environment}
        command = [sys.executable, "-P", "-m", "emberfs", *arguments]
        done = subprocess.run(
            command, check=False, input=data, capture_output=True, env=environment, cwd="/", timeout=SECONDS_MAX
        )
        return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "surrogateescape"))
