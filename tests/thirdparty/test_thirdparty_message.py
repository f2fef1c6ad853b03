"""What a failing `assert_parity` says about code that no one here wrote: one screen, and all there is to act on."""

from __future__ import annotations

import re

import pytest
from thirdparty_rebuild import fused, renamed
from thirdparty_unet import FAULTS, broken, build_unet, unet_inputs

import parity
from parity.errors import ParityFailure

FAULT = next(fault for fault in FAULTS if fault.name == "one_group")
EXPECTED = (
    r"parity DIVERGED: check",
    r"            The port departs from the reference\.",
    r"  first     down_blocks\.0\.resnets\.0\.norm1  \(activation, run\)",
    r"            in the port: encoder_stages\.0\.residuals\.0\.ln_a",
    r"  error     relative L2 0\.10[78]\d*, floor \d\.\d+e-07 \(\d{3},\d{3}x\)",
    r"  element   \[\d, \d+, \d, \d\] of \[2, 16, 6, 10\]  reference -?\d\.\d+  port -?\d\.\d+",
    r"  culprit   down_blocks\.0\.resnets\.0\.norm1, operation native_group_norm\(.*",
    r".*resnet\.py:\d+",
    r"            > hidden_states = self\.norm1\(hidden_states\)",
    r"            reference: native_group_norm\(f64\[2,16,6,10\], .* group=4, eps=1e-05\).*",
    r"  cause     group norm with 1 groups over all frames and pixels instead of group norm with 4 groups over all frames and",
    r"            pixels \[N7, confidence 0\.\d\d, leaves <0\.01%\]",
    r"  or        setting num_groups is 1 in the port and 4 in the reference \[W12, confidence 0\.\d\d, leaves 50%\]",
    r"  locality  .*",
    r"  coverage  445 compared, of 445 in the reference and 445 in the port",
    r"  notes     aligned without a map: \d+ by weights, .*",
    r"  zoom in   parity\.assert_parity\(\.\.\., zoom='down_blocks\.0\.resnets\.0\.norm1'\) lists the operations there",
)


def test_the_message_word_by_word() -> None:
    model = build_unet()
    with pytest.raises(ParityFailure) as caught:
        parity.assert_parity(model, renamed(fused(broken(FAULT, model))), unet_inputs())
    lines = str(caught.value).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 120
    assert len(lines) == len(EXPECTED)
    for line, wanted in zip(lines, EXPECTED, strict=True):
        assert re.fullmatch(wanted, line), (line, wanted)
