"""Schedules and solver steps (spec A13)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ported.wan.solver import build_scheduler, solve
from reference.wan import solvers
from reference.wan.solvers import schedules, unipc


@pytest.mark.parametrize(
    ("steps", "shift", "sigmas", "timesteps"),
    [
        (6, 5.0, [0.9998, 0.9613, 0.9088, 0.8331, 0.7140, 0.4997, 0], [999, 961, 908, 833, 713, 499]),
        (6, 1.0, [0.9990, 0.8325, 0.6660, 0.4995, 0.3330, 0.1665, 0], [999, 832, 666, 499, 333, 166]),
    ],
)
def test_unipc_tables(steps, shift, sigmas, timesteps):
    schedule = solvers.unipc_schedule(steps, shift)
    assert schedule.sigmas.tolist() == pytest.approx(sigmas, abs=5e-5)
    assert schedule.timesteps.tolist() == timesteps
    assert schedule.timesteps.dtype == torch.int64
    assert schedule.sigmas.dtype == torch.float32


def test_unipc_tables_of_fifty_steps():
    plain, large = solvers.unipc_schedule(50, 5.0).timesteps.tolist(), solvers.unipc_schedule(50, 16.0)
    assert plain[:16] == [999, 995, 991, 987, 982, 978, 973, 968, 963, 957, 952, 946, 940, 934, 927, 920]
    assert plain[-4:] == [302, 241, 172, 92]
    assert large.timesteps[:10].tolist() == [999, 998, 997, 995, 994, 993, 991, 989, 988, 986]
    assert large.timesteps[-4:].tolist() == [581, 504, 399, 245]
    assert large.sigmas[0].item() == pytest.approx(0.99994, abs=5e-6)


def test_training_table_and_its_ends():
    table = solvers.training_sigmas()
    assert table.dtype == torch.float32
    assert table[0].item() == pytest.approx(0.99900001287, abs=1e-11)
    assert table[[1, -1]].tolist() == pytest.approx([0.998, 0.0])


def test_dpmpp_table_starts_at_1000():
    schedule = solvers.dpmpp_schedule(6, 16.0)
    assert schedule.sigmas.tolist() == pytest.approx([1, 0.9877, 0.9697, 0.9412, 0.8889, 0.7619, 0], abs=5e-5)
    assert schedule.timesteps.tolist() == [1000, 987, 969, 941, 888, 761]


def test_euler_has_float_timesteps_on_the_same_sigmas():
    euler, dpmpp = solvers.euler_schedule(6, 5.0), solvers.dpmpp_schedule(6, 5.0)
    assert torch.equal(euler.sigmas, dpmpp.sigmas)
    assert torch.equal(euler.timesteps, euler.sigmas[:-1] * 1000)
    assert euler.timesteps.dtype == torch.float32


def run(name, steps, shift, x, velocity):
    """Run a trajectory with a velocity that is a function of (sigma, x)."""
    solver = solvers.make_solver(name, steps, shift)
    for i, t in enumerate(solver.timesteps):
        x = solver.step(velocity(solver.sigmas[i], x), t, x)
    return x


@pytest.mark.parametrize("name", ["unipc", "dpm++", "euler"])
@given(steps=st.integers(1, 12), shift=st.floats(1.0, 8.0))
@settings(max_examples=12, deadline=None)
def test_a_constant_data_prediction_is_reached_exactly(name, steps, shift):
    target = torch.linspace(-2, 2, 12).view(1, 3, 1, 2, 2)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    got = run(name, steps, shift, noise, lambda sigma, x: (x - target) / sigma)
    assert torch.allclose(got, target, atol=2e-4)


def test_higher_order_solvers_beat_euler_on_a_curved_flow():
    """Data N(mu, s²): x̂₀ is known in closed form, and so is the exact flow at every sigma."""
    mean, spread = 0.7, 0.35
    x = torch.randn(1, 2, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def velocity(sigma, x):
        alpha, sigma = 1 - sigma.double(), sigma.double()
        total = alpha**2 * spread**2 + sigma**2
        data = mean + alpha * spread**2 / total * (x - alpha * mean)
        return (x - data) / sigma

    def exact(sigma):
        return (1 - sigma) * mean + math.sqrt((1 - sigma) ** 2 * spread**2 + sigma**2) * x

    error = {}
    for name in ("unipc", "dpm++", "euler"):
        solver = solvers.make_solver(name, 16, 3.0)
        sample = exact(solver.sigmas[0].item())
        for i, t in enumerate(solver.timesteps[:-1]):  # the last step is of first order everywhere
            sample = solver.step(velocity(solver.sigmas[i], sample), t, sample)
        error[name] = (sample - exact(solver.sigmas[-2].item())).abs().max().item()
    assert error["unipc"] < 0.2 * error["euler"]
    assert error["dpm++"] < 0.2 * error["euler"]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 14, 16, 20])
@pytest.mark.parametrize("order", [2, 3])
def test_dpmpp_is_the_library_s_multistep_solver(order, steps):
    """Against diffusers on the same sigmas: orders at the start, in the middle and (below 15 steps) at the end."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(1, 2, 3, 2, 2, generator=draw)
    velocities = torch.randn(steps, 1, 2, 3, 2, 2, generator=draw)
    library = build_scheduler("dpmpp", 4.0, order=order)
    theirs = solve(library, x, lambda i, _, __: velocities[i], steps, begin=0)
    ours, own = solvers.DPMSolverPP(solvers.dpmpp_schedule(steps, 4.0), order), x
    for i, t in enumerate(ours.timesteps):
        own = ours.step(velocities[i], t, own)
        assert torch.allclose(own, theirs[i + 1], rtol=1e-5, atol=1e-6)


def record_orders(monkeypatch, steps, shift):
    predicted, corrected = [], []
    original = unipc.UniPC.predict, unipc.UniPC.correct
    monkeypatch.setattr(
        unipc.UniPC, "predict", lambda self, x, order: (predicted.append(order), original[0](self, x, order))[1]
    )
    monkeypatch.setattr(
        unipc.UniPC, "correct", lambda self, m, order: (corrected.append(order), original[1](self, m, order))[1]
    )
    run("unipc", steps, shift, torch.ones(1, 1, 1, 2, 2), lambda sigma, x: torch.sin(x))
    return predicted, corrected


@pytest.mark.parametrize(
    ("steps", "predicted", "corrected"), [(1, [1], []), (2, [1, 1], [1]), (5, [1, 2, 2, 2, 1], [1, 2, 2, 2])]
)
def test_unipc_orders(monkeypatch, steps, predicted, corrected):
    assert record_orders(monkeypatch, steps, 5.0) == (predicted, corrected)


def test_unipc_predicts_data_from_the_sample_as_received():
    solver = solvers.make_solver("unipc", 4, 5.0)
    x = torch.full((1, 1, 1, 1, 1), 0.3)
    for i in range(2):
        v = torch.full_like(x, 0.2 + i)
        received = x
        x = solver.step(v, solver.timesteps[i], x)
    assert torch.equal(solver.predictions[-1], received - solver.sigmas[1] * v)
    assert not torch.equal(solver.last_sample, received)  # corrected


def test_last_step_returns_the_data_prediction():
    for name in ("unipc", "dpm++"):
        solver = solvers.make_solver(name, 3, 5.0)
        x = torch.randn(1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        for i in range(3):
            v, received = torch.cos(x), x
            x = solver.step(v, solver.timesteps[i], x)
        assert torch.allclose(x, received - solver.sigmas[2] * v, atol=1e-6)


@pytest.mark.parametrize(("steps", "shift", "repeats"), [(80, 16.0, True), (100, 12.0, True), (50, 16.0, False)])
def test_duplicate_first_timestep_skips_a_sigma_and_fails_at_the_end(steps, shift, repeats):
    schedule = solvers.unipc_schedule(steps, shift)
    assert (schedule.timesteps[0] == schedule.timesteps[1]).item() is repeats
    assert schedules.start_index(schedule.timesteps, schedule.timesteps[0]) == int(repeats)
    if repeats:
        with pytest.raises(ValueError, match="order 0"):
            run("unipc", steps, shift, torch.ones(1, 1, 1, 1, 1), lambda sigma, x: x)
    else:
        assert torch.isfinite(run("unipc", steps, shift, torch.ones(1, 1, 1, 1, 1), lambda sigma, x: x)).all()


def test_dpmpp_survives_infinite_lambda_at_sigma_one():
    x = torch.randn(1, 1, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    assert torch.isfinite(run("dpm++", 5, 16.0, x, lambda sigma, x: torch.tanh(x))).all()


def test_unknown_solver_and_timestep_are_refused():
    with pytest.raises(ValueError, match="heun"):
        solvers.make_solver("heun", 4, 1.0)
    solver = solvers.make_solver("unipc", 4, 5.0)
    with pytest.raises(ValueError, match="1000 is not in the schedule"):
        solver.step(torch.zeros(1), torch.tensor(1000), torch.zeros(1))
