"""What every test gets: one thread (sums in one order, and quiet machines), and property tests that are the same on every run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest_plugins = ["pytester"]

torch.set_num_threads(1)
settings.register_profile(
    "parity", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("parity")


# What the suite knows to be wrong today: each is a miss that is to be mended, none is hidden (docs/LOG.md, 2026-11-28).
MISSES = {
    "test_gradients.py::test_a_right_training_step_is_quiet[halves]": "a right step is called diverged: Adam's first step is a sign",
    "test_gradients.py::test_a_wrong_training_step_is_found[no_clipping]": "the culprit is a module, not the step",
    "test_synthetic_gauntlet.py::test_a_defect_is_found_placed_and_named[text_image_hidden_off_by_one]": "cause N5 instead of C2",
    "test_thirdparty_mistakes.py::test_a_mistake_is_placed_and_named[time_not_activated]": "the block is a second culprit",
    "test_thirdparty_unet.py::test_a_fault_in_the_rebuilt_model_is_placed_and_named[freq_shift-fp32]": "verified edit, class W12",
    "test_thirdparty_unet.py::test_a_fault_in_the_rebuilt_model_is_placed_and_named[max_period-fp32]": "verified edit, class W12",
    "test_thirdparty_message.py::test_the_message_word_by_word": "the words of an edit are new",
}


def pytest_collection_modifyitems(items):
    """Mark the known misses; one that passes again is shown as such."""
    for item in items:
        for ending, reason in MISSES.items():
            if item.nodeid.endswith(ending):
                item.add_marker(pytest.mark.xfail(reason=reason))
