"""What every test gets: one thread (sums in one order, and quiet machines), and property tests that are the same on every run."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

torch.set_num_threads(1)
settings.register_profile(
    "parity", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("parity")
