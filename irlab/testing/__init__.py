"""Tools for testing passes, rules and plug-ins: what irlab's own tests use, for the tests of other packages.

    filecheck      RUN/CHECK tests in one IR file, collected by pytest: `-p irlab.testing.filecheck`
    equivalence    `assert_equivalent(a, b)`, `assert_preserves("my-pass", module)`: the same numbers, or what differs
    strategies     hypothesis strategies for random valid modules, types, weights and decoders

Only the `test` extra brings what these need (pytest, filecheck, hypothesis): pip install 'irlab[test]'.
"""

from __future__ import annotations

from .equivalence import CannotRun, assert_equivalent, assert_preserves

__all__ = ["CannotRun", "assert_equivalent", "assert_preserves"]
