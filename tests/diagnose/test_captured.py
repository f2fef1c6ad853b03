"""Numbers of the first call, noise in the context, detours through pixels, other shift formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from recognise import named, normal, top
from torch import Tensor

from parity.capture.operations import Op
from parity.diagnose.captured import HYPOTHESES as CAPTURED
from parity.diagnose.detours import HYPOTHESES as DETOURS
from parity.diagnose.evidence import Evidence
from parity.diagnose.renoised import HYPOTHESES as RENOISED
from parity.diagnose.time import HYPOTHESES as TIME

STEPS = (-0.1, -0.2, -0.35, -0.4)


def lookup(values: Mapping[str, tuple[float, ...]]) -> Callable[[str, Mapping[str, int]], Tensor | None]:
    def at(site: str, coords: Mapping[str, int]) -> Tensor | None:
        row, step = values.get(site, ()), coords.get("step", 0)
        return torch.tensor(row[step]) if step < len(row) else None

    return at


def stepped(port: tuple[float, ...]) -> Evidence:
    return Evidence(
        torch.tensor(STEPS[1]), torch.tensor(port[1]), site="h", coords={"step": 1}, kind="latent",
        ref_at=lookup({"h": STEPS}), port_at=lookup({"h": port}), sites=["h"],
    )  # fmt: skip


def test_the_first_steps_number_at_every_step() -> None:
    assert named(stepped((-0.1,) * 4), CAPTURED) == {"captured numbers": "K9"}


@pytest.mark.parametrize("port", [(-0.1, -0.1, -0.2, -0.35), (-0.3,) * 4, (-0.1, -0.1, -0.35, -0.4)])
def test_a_number_that_moves_on_or_is_none_of_the_references_is_not_captured(port: tuple[float, ...]) -> None:
    assert not named(stepped(port), CAPTURED)


CLEAN, NOISE = normal(2, 4, 6, seed=1), normal(2, 4, 6, seed=2)


def mixed(a: float, b: float, drawn: Tensor = NOISE) -> Evidence:
    made = a * CLEAN + b * NOISE
    return Evidence(
        CLEAN, made, ref_ops=[Op("slice", (normal(2, 5, 6),), (CLEAN,))],
        port_ops=[Op("randn", (), (drawn,)), Op("add", (a * CLEAN, b * NOISE), (made,))],
    )  # fmt: skip


def test_context_at_a_noise_level() -> None:
    assert top(mixed(0.87, 0.13), RENOISED)[2].parameters["sigma"] == pytest.approx(0.13)
    assert named(mixed((1 - 0.13**2) ** 0.5, 0.13), RENOISED) == {"noise in the context": "K2"}


def test_other_mixtures_are_no_noise_level() -> None:
    assert not named(mixed(1.0, 0.13), RENOISED)
    assert not named(mixed(0.87, 0.13, drawn=normal(2, 4, 6, seed=3)), RENOISED)


def test_a_latent_that_goes_through_pixels() -> None:
    detour = [("latents", "frame", CLEAN), ("decoded", "frame", normal(2, 3, 8, 8)), ("codec.enc", "activation", NOISE)]
    ev = Evidence(CLEAN, NOISE, kind="latent", detour=detour)
    assert named(ev, DETOURS) == {"through pixels": "V9"}
    assert not named(replace(ev, detour=[("latents", "frame", normal(2, 4, 6, seed=9)), *detour[1:]]), DETOURS)
    assert not named(replace(ev, detour=[detour[0], detour[2]]), DETOURS)


U = torch.linspace(1.0, 0.1, 6, dtype=torch.float64)


def shifted(power: float, k: float = 5.0) -> Tensor:
    return k / (k + (1 / U - 1) ** power)


def test_a_shift_by_another_formula() -> None:
    ev = Evidence(shifted(1.0), shifted(2.0), kind="schedule")
    _, class_id, found = top(ev, TIME)
    assert class_id == "T3"
    assert found.parameters["power"] == pytest.approx(2.0)


def test_another_shift_is_not_another_formula() -> None:
    _, class_id, found = top(Evidence(shifted(1.0), shifted(1.0, 3.0), kind="schedule"), TIME)
    assert class_id == "T3"
    assert "power" not in found.parameters


def test_running_numbers_are_positions_and_no_schedule() -> None:
    r = torch.arange(13)
    assert "T5" not in named(Evidence(r, (r + 1) % 13, kind="input"), TIME).values()
