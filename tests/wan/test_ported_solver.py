"""Schedules and solvers of the Wan port against the tables and formulas of the specification."""

import math
from itertools import pairwise

import pytest
import torch

from ported.wan import solver

UNIPC_6_5 = [0.9998, 0.9613, 0.9088, 0.8331, 0.7140, 0.4997, 0]


def run(scheduler, steps, begin=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise, *velocities = torch.randn(steps + 1, 1, 4, 2, 3, 5, generator=generator)
    return solver.solve(scheduler, noise, lambda i, x, t: velocities[i], steps, begin), velocities


@pytest.mark.parametrize(
    ("kind", "steps", "shift", "sigmas", "times"),
    [
        ("unipc", 6, 5.0, UNIPC_6_5, [999, 961, 908, 833, 713, 499]),
        ("unipc", 6, 1.0, [0.9990, 0.8325, 0.6660, 0.4995, 0.3330, 0.1665, 0], [999, 832, 666, 499, 333, 166]),
        ("dpmpp", 6, 16.0, [1, 0.9877, 0.9697, 0.9412, 0.8889, 0.7619, 0], [1000, 987, 969, 941, 888, 761]),
    ],
)
def test_official_tables(kind, steps, shift, sigmas, times):
    scheduler = solver.build_scheduler(kind, shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(sigmas).float(), rtol=0, atol=6e-5)
    assert scheduler.timesteps.tolist() == times
    assert scheduler.timesteps.dtype == torch.int64


def test_long_tables_truncate():
    five, sixteen = solver.official_table("unipc", 50, 5.0), solver.official_table("unipc", 50, 16.0)
    assert five.timesteps[:8].tolist() == [999, 995, 991, 987, 982, 978, 973, 968]
    assert five.timesteps[-4:].tolist() == [302, 241, 172, 92]
    assert sixteen.timesteps[-4:].tolist() == [581, 504, 399, 245]


def test_euler_times_are_not_integers():
    table = solver.official_table("euler", 6, 5.0)
    assert table.timesteps.dtype == torch.float32
    torch.testing.assert_close(table.timesteps, table.sigmas[:-1] * 1000)


def test_native_tables_differ_as_the_specification_says():
    native = solver.build_scheduler("unipc", 5.0, native=True)
    native.set_timesteps(50)
    official = solver.official_table("unipc", 50, 5.0)
    gap = (native.sigmas - official.sigmas).abs()
    assert 3e-3 < gap.max() < 5e-3
    assert int((native.timesteps != official.timesteps).sum()) == 27
    euler = solver.build_scheduler("euler", 5.0, native=True)
    euler.set_timesteps(6)
    assert euler.sigmas[-2] == pytest.approx(0.024, abs=1e-3)


def test_euler_steps_are_the_formula():
    scheduler = solver.build_scheduler("euler", 5.0)
    samples, velocities = run(scheduler, 6)
    for i, (a, b) in enumerate(pairwise(samples)):
        torch.testing.assert_close(b, a + (scheduler.sigmas[i + 1] - scheduler.sigmas[i]) * velocities[i])


def test_first_and_last_unipc_steps_are_the_formula():
    scheduler = solver.build_scheduler("unipc", 5.0)
    samples, velocities = run(scheduler, 6)
    now, after = scheduler.sigmas[0].item(), scheduler.sigmas[1].item()
    data = samples[0] - now * velocities[0]
    step = math.log((1 - after) / after) - math.log((1 - now) / now)
    expected = after / now * samples[0] - (1 - after) * math.expm1(-step) * data
    torch.testing.assert_close(samples[1], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.isfinite(x).all() for x in samples)


def test_the_searched_start_fails_when_the_first_timestep_repeats():
    scheduler = solver.build_scheduler("unipc", 16.0)
    run(scheduler, 50)
    run(scheduler, 100, begin=0)
    with pytest.raises(AssertionError):
        run(scheduler, 100)


def test_a_scheduler_can_be_used_twice():
    scheduler = solver.build_scheduler("unipc", 5.0)
    first, _ = run(scheduler, 6)
    second, _ = run(scheduler, 6)
    assert torch.equal(first[-1], second[-1])


def test_unknown_solver():
    with pytest.raises(ValueError, match="choose one of unipc, dpmpp, euler"):
        solver.build_scheduler("heun")
