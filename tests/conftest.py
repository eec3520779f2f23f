"""What all tests share. Standing here, it also puts this folder on the path: `from strategies import modules`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Machines that run tests are slow and shared: a deadline would fail there and nowhere else.
settings.register_profile("irlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("irlab")
