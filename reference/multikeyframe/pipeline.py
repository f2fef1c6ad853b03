"""Keyframes to one video (specification, sections 5 and 8): plan, segments one by one, join, smooth, write."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from reference.wan.pipeline import Prompts, Sampling, to_uint8

from . import plan, smoothing, stitching, video
from .config import GenerationConfig
from .generator import Fingerprint, Generator, digest
from .keyframes import make_keyframes, validate_keyframes
from .models import NEGATIVE_PROMPT, Models, read_keyframe
from .plan import SegmentConfig
from .rules import REPAIRED, Rules
from .segment import DEFAULT_SHIFT, DEFAULT_STEPS, SegmentInputs, generate_segment

MODEL_RATE = 16.0  # what the model writes (section 2.3)


@dataclass(frozen=True)
class Request:
    """What a video is made from: (path, seconds) of every keyframe, prompts, and how the joints are treated."""

    keyframes: Sequence[tuple[str | Path, float]]
    prompt: str
    sub_prompts: Sequence[str] | None = None
    smoothing_method: str = "temporal_filter"  # "none" when smoothing is off
    force_regenerate: bool = False
    resume_from: int | None = None
    negative_prompt: str = NEGATIVE_PROMPT


@dataclass(frozen=True)
class Film:
    """The joined frames, before and after smoothing, uint8 `(f, h, w, 3)`; the junctions; played at `rate`."""

    joined: Tensor
    smoothed: Tensor
    junctions: list[int]
    rate: float


def make_plan(config: GenerationConfig, request: Request) -> list[SegmentConfig]:
    """Validate configuration and keyframes, and plan. Raises ValueError with the first problem."""
    ok, message = config.validate()
    if not ok:
        raise ValueError(f"Invalid configuration: {message}")
    keyframes = make_keyframes(request.keyframes, config.fps)
    ok, message = validate_keyframes(keyframes)
    if not ok:
        raise ValueError(f"Keyframe validation failed: {message}")
    return plan.make_segments(keyframes, request.prompt, request.sub_prompts)


def frames_of(film: Tensor) -> Tensor:
    """Video `(3, f, h, w)` in [−1, 1] -> frames uint8 `(f, h, w, 3)`, truncated."""
    return to_uint8(film).permute(1, 2, 3, 0).contiguous()


def render(models: Models, config: GenerationConfig, request: Request, segment: SegmentConfig) -> Tensor:
    """Frames uint8 `(f, h, w, 3)` of one segment."""
    first, last = read_keyframe(segment.first_frame), read_keyframe(segment.last_frame)
    inputs = SegmentInputs(
        first=first,
        last=last,
        clip_fea=models.encode_pair(first, last),
        prompts=Prompts(models.encode_text(segment.full_prompt), models.encode_text(request.negative_prompt)),
        frames=segment.num_frames,
        seed=plan.segment_seed(config.base_seed, segment.segment_id),
    )
    return frames_of(generate_segment(models.networks, inputs, config.max_area, sampling_of(models, config)).video)


def sampling_of(models: Models, config: GenerationConfig) -> Sampling:
    """Steps, shift and guidance; what the configuration leaves open is the task's default."""
    return Sampling(
        steps=config.sample_steps or DEFAULT_STEPS,
        shift=config.sample_shift if config.sample_shift is not None else DEFAULT_SHIFT,
        guide_scale=config.sample_guide_scale if config.sample_guide_scale is not None else 5.5,
        autocast=models.autocast,
    )


def write_frames(frames: Tensor, path: Path) -> None:
    """Store a segment without loss."""
    save_file({"frames": frames}, path)


def read_frames(path: Path) -> tuple[Tensor, float]:
    """Read a stored segment, or a video file."""
    if path.suffix == ".safetensors":
        return load_file(path)["frames"].clone(), MODEL_RATE
    return video.read_video(path)


def fingerprint_of(config: GenerationConfig, request: Request) -> Fingerprint:
    """What a segment's frames depend on: pictures, length, text, seed, size and sampling."""

    def fingerprint(segment: SegmentConfig) -> str:
        seed = plan.segment_seed(config.base_seed, segment.segment_id)
        sampling = (config.size, config.sample_steps, config.sample_shift, config.sample_guide_scale)
        pictures = [path.read_bytes() for path in (segment.first_frame, segment.last_frame)]
        return digest(*pictures, segment.num_frames, segment.full_prompt, request.negative_prompt, seed, *sampling)

    return fingerprint


def make_generator(models: Models, config: GenerationConfig, request: Request, rules: Rules = REPAIRED) -> Generator:
    """The generator of an output folder, with this model behind it."""
    return Generator(
        Path(config.output_dir),
        run_model=lambda segment, path: write_frames(render(models, config, request, segment), path),
        suffix=".safetensors",
        rules=rules,
        fingerprint=fingerprint_of(config, request),
    )


def join(clips: Sequence[Tensor], rate: float, config: GenerationConfig, rules: Rules) -> tuple[Tensor, float]:
    """Clips to one film and its rate. Upstream keeps the model's rate for a single clip and re-times several."""
    joined = stitching.concat(clips, rules.drop_shared)
    if rules.relabel:
        return joined, config.fps
    return (joined, rate) if len(clips) == 1 else (stitching.retime(joined, rate, config.fps), config.fps)


def assemble(
    paths: Sequence[Path],
    segments: Sequence[SegmentConfig],
    config: GenerationConfig,
    request: Request,
    rules: Rules = REPAIRED,
) -> Film:
    """Join the segments' files and smooth the joints."""
    read = [read_frames(path) for path in paths]
    joined, rate = join([frames for frames, _ in read], read[0][1], config, rules)
    lengths = [segment.num_frames for segment in segments]
    joints = plan.junctions(lengths, rules.drop_shared) if rules.true_junctions else plan.upstream_junctions(lengths)
    smoothed = smoothing.smooth(
        joined,
        joints,
        request.smoothing_method,
        centred=rules.centred,
        merge=rules.merge_windows,
        junctions_only=rules.junctions_only,
    )
    return Film(joined, smoothed, joints, rate)


def run(
    config: GenerationConfig,
    request: Request,
    output: Path,
    generator_of: Callable[[GenerationConfig, Request, Rules], Generator],
    rules: Rules = REPAIRED,
) -> Film:
    """Make the video file. `generator_of` gives the generator, with a model behind it.

    Raises ValueError for a bad configuration or bad keyframes and RuntimeError when a segment fails.
    """
    segments = make_plan(config, request)
    generator = generator_of(config, request, rules)
    force = request.force_regenerate and rules.pass_force
    paths = generator.generate_batch_sequential(segments, request.resume_from, force)
    film = assemble(paths, segments, config, request, rules)
    video.write_mp4(film.smoothed, output, film.rate)
    return film


def generate(models: Models, config: GenerationConfig, request: Request, output: Path) -> Film:
    """Make the video file with the given networks; a seed below 0 is drawn once, for all segments."""
    if config.base_seed < 0:
        config = replace(config, base_seed=int(torch.randint(2**31, (1,))))
    return run(config, request, output, lambda c, r, rules: make_generator(models, c, r, rules))
