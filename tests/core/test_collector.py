"""Python's cyclic collector is stopped only for as long as it was asked for."""

from __future__ import annotations

import gc

import pytest

from irlab.collector import paused


def test_the_collector_runs_again_afterwards_also_after_an_error() -> None:
    with pytest.raises(KeyError), paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_what_was_stopped_before_stays_stopped() -> None:
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_can_be_left_running() -> None:
    with paused(False):
        assert gc.isenabled()
