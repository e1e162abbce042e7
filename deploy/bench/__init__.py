"""Benchmarks, for `emberfs bench` and for tests/bench: modules with `run(quick=False) -> {"rows": [...], ...}`.

A row is {"what", "value", "unit"} and, where there is something to compare with, {"baseline", "ratio", "aim", "met"}: the same
work done by the bare machine in the same run. Absolute figures of a shared machine move by a factor of two from hour to hour; ratios hold.
"""
