"""Faults in noise, loop and decode."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ported.svi import sampling
from ported.svi.conditioning import Condition
from ported.svi.faults.record import Port, PortFault, replaced, swap, version

right_noise, right_shifted, right_velocity = sampling.draw_noise, sampling.shifted, sampling.velocity
right_trim, right_step = sampling.trim, sampling.EulerSchedule.step


def other_generator(condition: Condition, seed: int, device: Any = "cpu") -> Tensor:
    """Noise of another kind of generator with the same seed, as on another device."""
    shape = (1, 16, *condition.lat_y.shape[1:])
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed)).standard_normal(shape, np.float32))


def noise_frames_first(condition: Condition, seed: int, device: Any = "cpu") -> Tensor:
    """The draw fills frames first, then channels."""
    _, t, h, w = condition.lat_y.shape
    drawn = torch.randn((1, t, 16, h, w), generator=torch.Generator(device).manual_seed(seed), device=device)
    return drawn.transpose(1, 2)


def noise_half(condition: Condition, seed: int, device: Any = "cpu") -> Tensor:
    """Noise drawn in the model's half precision."""
    return right_noise(condition, seed, device).bfloat16().float()


def shifted_twice(u: Tensor, shift: float) -> Tensor:
    """The flow shift applied twice."""
    return right_shifted(right_shifted(u, shift), shift)


def not_shifted(u: Tensor, shift: float) -> Tensor:
    """The flow shift forgotten."""
    return u


def untrimmed(latent: Tensor, condition: Condition) -> Tensor:
    """The end latent stays in the clip."""
    return latent[0]


def first_trimmed(latent: Tensor, condition: Condition) -> Tensor:
    """The trim takes the first latent, not the last."""
    return latent[0, :, condition.trim_frames :]


def last_step_left_out(schedule: Any, i: int, flow: Tensor, sample: Tensor) -> Tensor:
    """The loop ends at the last time step and not at 0."""
    return sample if i + 1 == len(schedule.timesteps) else right_step(schedule, i, flow, sample)


def unconditioned_second(port: Port) -> Any:
    """The second pass of guidance gets no picture."""
    calls = [0]

    def velocity(model: Any, latent: Tensor, y: Tensor, t: Tensor, context: Tensor) -> Tensor:
        calls[0] += 1
        return right_velocity(model, latent, y if calls[0] % 2 else torch.zeros_like(y), t, context)

    return replaced((sampling, "velocity", velocity))


def guided_backwards(flow: Tensor, other: Tensor, scale: float) -> Tensor:
    """Guidance away from the text."""
    return flow + scale * (other - flow)


FAULTS = (
    PortFault("noise_of_other_device", "F37", "S1", "noise of a generator of another kind, same seed", swap(sampling, "draw_noise", other_generator)),
    PortFault("noise_frames_first", "F37", "S2", "the noise is drawn frames first", swap(sampling, "draw_noise", noise_frames_first)),
    PortFault("noise_half", "S2", "S2", "noise in half precision", swap(sampling, "draw_noise", noise_half)),
    PortFault("shifted_twice", "T3", "T3", "flow shift applied twice", swap(sampling, "shifted", shifted_twice)),
    PortFault("not_shifted", "T3", "T3", "flow shift forgotten", swap(sampling, "shifted", not_shifted)),
    PortFault("last_step_left_out", "T5", "T5", "the loop stops before 0", swap(sampling.EulerSchedule, "step", last_step_left_out)),
    PortFault("end_latent_kept", "F33", "V7", "the end latent is decoded with the others", swap(sampling, "trim", untrimmed), "shape"),
    PortFault("first_latent_trimmed", "V7", "V7", "the trim takes the first latent", swap(sampling, "trim", first_trimmed)),
    PortFault("first_frame_lost", "F17", "V7", "a leading frame dropped that stands for no anchor", version(pre_trim_with_end=1), "shape"),
    PortFault("second_pass_unconditioned", "C1", "C1", "the second pass of guidance gets no picture", unconditioned_second),
    PortFault("guided_backwards", "C1", "C1", "the passes of guidance exchanged", swap(sampling, "guided", guided_backwards)),
)  # fmt: skip
