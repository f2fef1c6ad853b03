"""One task: parameters in, frames out, over all of its windows (spec sections 7 and 8)."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKLWan
from torch import Tensor

from ported.svi import conditioning, definition, frames, sampling, windows
from ported.svi.definition import Definition
from ported.svi.versions import RIGHT, Version
from ported.wan.dit import DiTForward


@dataclass
class Loaded:
    """A pipeline in memory, with the definition that it was loaded by."""

    vae: AutoencoderKLWan
    model: DiTForward
    definition: Definition
    model_type: str = "i2v_2_2"


@dataclass
class Server:
    """The registry's definition of the model, the loaded pipeline, and how it samples."""

    registry: Definition
    loaded: Loaded
    sampling: sampling.Sampling
    version: Version = RIGHT


@dataclass(frozen=True)
class Task:
    """What is asked for. Videos `(3, t, H, W)` in [-1, 1]; pictures uint8; contexts: texts of the two passes.

    parameters: generation arguments by name; `video_length` and the flag `svi2pro` are among them.
    images_end: one end frame `(3, H, W)` for each window; a single one is the last window's.
    """

    parameters: dict[str, Any]
    seed: int
    contexts: tuple[Tensor, Tensor | None]
    source_video: Tensor | None = None
    start_image: Tensor | None = None
    images_end: tuple[Tensor, ...] = ()
    ref_images: tuple[Tensor, ...] = ()
    overlap: int = definition.OVERLAP
    window_size: int = 81


def run_task(server: Server, task: Task) -> Tensor:
    """Generate `(3, t, H, W)`; a task with the flag runs in SVI mode and leaves no trace of it."""
    parameters = dict(task.parameters)
    mode = svi_mode(server) if definition.take_flag(parameters) else nullcontext()
    with mode:
        return generate(server, task, **parameters)


def svi_mode(server: Server) -> Any:
    """SVI mode in the registry and in the loaded pipeline."""
    return definition.svi_mode(server.registry, server.loaded.definition)


def generate(server: Server, task: Task, video_length: int) -> Tensor:
    """Run all windows of a request, each from the frames that came before."""
    done = prefix_of(task)
    plan = plan_of(server, task, video_length, done)
    for window in range(1, plan.windows + 1):
        leading = leading_of(task, plan, done)
        request = window_request(server, task, plan, window, done, leading)
        done = windows.join(done, run_window(server, task, request), leading.shape[1])
    if done is None:
        raise ValueError("a task needs at least one window")
    return done


def prefix_of(task: Task) -> Tensor | None:
    """All frames that are there before: the source video, else the start picture."""
    if task.source_video is not None:
        return task.source_video
    return None if task.start_image is None else frames.to_tensor(task.start_image)


def plan_of(server: Server, task: Task, video_length: int, prefix: Tensor | None) -> windows.Plan:
    """Account for the windows, by the registry's definition."""
    source = 0 if task.source_video is None or prefix is None else prefix.shape[1]
    return windows.plan(server.registry, video_length, task.overlap, task.window_size, source)


def leading_of(task: Task, plan: windows.Plan, prefix: Tensor | None) -> Tensor:
    """The known leading frames of a window.

    Errors: ValueError when there is nothing to start from.
    """
    if prefix is None:
        raise ValueError("a task needs a source video or a start picture")
    return prefix if prefix.shape[1] == 1 else windows.leading_frames(prefix, plan.reuse)


def window_request(
    server: Server, task: Task, plan: windows.Plan, window: int, prefix: Tensor | None, leading: Tensor
) -> conditioning.Request:
    """The conditioning of one window; sampling reads the loaded pipeline's definition."""
    return conditioning.Request(
        model_type=server.loaded.model_type,
        definition=server.loaded.definition,
        frame_num=plan.frame_num,
        input_video=leading,
        image_end=end_of(task, plan, window),
        input_ref_images=task.ref_images,
        pre_video_frame=frames.to_picture(leading[:, -1]),
        prefix_video=prefix,
        overlap_size=plan.overlap,
        window_no=window,
        version=server.version,
    )


def end_of(task: Task, plan: windows.Plan, window: int) -> Tensor | None:
    """The end frame of a window: a single one belongs to the last."""
    if not task.images_end:
        return None
    if len(task.images_end) == 1:
        return task.images_end[0] if window == plan.windows else None
    return task.images_end[window - 1] if window <= len(task.images_end) else None


def run_window(server: Server, task: Task, request: conditioning.Request) -> Tensor:
    """Condition, sample, decode; the frames that stand for the anchor are dropped."""
    loaded = server.loaded
    condition = conditioning.condition(loaded.vae, request)
    noise = sampling.draw_noise(condition, task.seed + request.window_no - 1)
    latent = sampling.sample(loaded.model, condition, noise, task.contexts, server.sampling)
    return sampling.drop_leading(sampling.decode(loaded.vae, latent, condition, server.version), condition)
