"""What all tests share. Standing here, it also puts this folder on the path: `from tiny_models import tiny_model`."""

from __future__ import annotations

import os

# Tests run side by side (pytest-xdist): torch's threads would only wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from hypothesis import HealthCheck, settings

# Machines that run tests are slow and shared: a deadline would fail there and nowhere else.
settings.register_profile("irlab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("irlab")
