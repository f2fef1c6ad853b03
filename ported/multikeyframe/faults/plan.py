"""Faults of the plan: frame numbers, lengths, prompts, seeds, and which keyframes a segment gets."""

from contextlib import AbstractContextManager
from dataclasses import replace

from ported.multikeyframe import pipeline, plan, worker
from ported.multikeyframe.faults.record import Port, PortFault, patched

Switch = AbstractContextManager[None]


def frame_number_rounded(port: Port) -> Switch:
    """t·fps is rounded to the nearest frame instead of truncated."""
    return patched(plan, "frame_number", lambda seconds, fps: round(seconds * fps))


def ties_half_up(port: Port) -> Switch:
    """A length midway between two values of 4n+1 goes up instead of to even n."""
    return patched(plan, "rounded_length", lambda frames: max(5, 4 * int((frames - 1) / 4 + 0.5) + 1))


def lengths_rounded_up(port: Port) -> Switch:
    """Lengths go up to the next 4n+1, as the suggestions do."""
    return patched(plan, "rounded_length", lambda frames: max(5, 4 * -(-(frames - 1) // 4) + 1))


def own_prompt_of_next_segment(port: Port) -> Switch:
    """The sub-prompt is taken from the next segment."""
    original = plan.segment_prompt
    return patched(plan, "segment_prompt", lambda prompt, subs, i: original(prompt, subs, i + 1))


def own_prompt_replaces(port: Port) -> Switch:
    """The sub-prompt stands in place of the global prompt instead of behind it."""
    return patched(plan, "segment_prompt", lambda prompt, subs, i: (subs[i] if i < len(subs) else "") or prompt)


def own_prompt_ignored(port: Port) -> Switch:
    """Every segment gets the global prompt alone."""
    return patched(plan, "segment_prompt", lambda prompt, subs, i: prompt)


def seed_not_increased(port: Port) -> Switch:
    """Every segment has the base seed."""
    return patched(plan, "segment_seed", lambda base, index: base)


def seed_one_late(port: Port) -> Switch:
    """Seeds count from one: base + id + 1."""
    return patched(plan, "segment_seed", lambda base, index: base + index + 1)


def last_keyframe_one_late(port: Port) -> Switch:
    """Segment i runs from keyframe i to keyframe i+2."""
    original = pipeline.plan.make_plan

    def make_plan(settings):  # type: ignore[no-untyped-def]
        made = original(settings)
        following = [*made[1:], made[-1]]
        return [replace(segment, last=after.last) for segment, after in zip(made, following, strict=True)]

    return patched(pipeline.plan, "make_plan", make_plan)


def first_keyframe_twice(port: Port) -> Switch:
    """A segment's last picture is its first one again."""
    original = worker.read_pair
    return patched(worker, "read_pair", lambda task: (original(task)[0],) * 2)


def keyframes_exchanged(port: Port) -> Switch:
    """A segment runs from its last picture to its first."""
    original = worker.read_pair
    return patched(worker, "read_pair", lambda task: original(task)[::-1])


FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "frame_number_rounded", "M21", "V7", "frame numbers rounded, not truncated", frame_number_rounded, "plan"
    ),
    PortFault("ties_half_up", "M22", "V7", "lengths rounded half up, not half to even", ties_half_up, "plan"),
    PortFault("lengths_rounded_up", "M20", "V7", "lengths rounded up to 4n+1", lengths_rounded_up, "plan"),
    PortFault(
        "own_prompt_of_next_segment", "+", "C3", "sub-prompt of the next segment", own_prompt_of_next_segment, "plan"
    ),
    PortFault("own_prompt_replaces", "+", "C3", "sub-prompt instead of the global prompt", own_prompt_replaces, "plan"),
    PortFault("own_prompt_ignored", "+", "C3", "sub-prompts ignored", own_prompt_ignored, "plan"),
    PortFault("seed_not_increased", "M31", "S3", "one seed for all segments", seed_not_increased, "plan"),
    PortFault("seed_one_late", "M31", "S2", "seeds counted from one", seed_one_late, "plan"),
    PortFault("last_keyframe_one_late", "M33", "V8", "segment from keyframe i to i+2", last_keyframe_one_late, "plan"),
    PortFault("first_keyframe_twice", "M33", "V8", "segment from keyframe i to i", first_keyframe_twice, "plan"),
    PortFault("keyframes_exchanged", "M33", "V8", "first and last keyframe exchanged", keyframes_exchanged, "plan"),
)
