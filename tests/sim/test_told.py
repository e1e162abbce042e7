"""The scenarios in `told/`: what is seen is what was recorded."""

from __future__ import annotations

import pytest

from .told import FOLDER, play

SCENARIOS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("file", SCENARIOS, ids=[file.stem for file in SCENARIOS])
def test_scenario(file) -> None:  # type: ignore[no-untyped-def]
    recorded = file.read_text()
    assert play(recorded) == recorded, "record it anew with `python -m emberfs.tests.sim --rewrite` if that is right"
