"""What a fault is, and the two tools by which faults are put in and taken out again."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionModel, UMT5EncoderModel

Part = Literal["dit", "vae", "text", "clip", "solver", "conditioning", "pipeline"]


@dataclass(frozen=True)
class Port:
    """The live objects of one run of the port; a fault or a variation takes those it needs."""

    dit: WanTransformer3DModel | None = None
    vae: AutoencoderKLWan | None = None
    text: UMT5EncoderModel | None = None
    clip: CLIPVisionModel | None = None
    scheduler: Any = None
    pipe: Any = None


def port_of(pipe: Any) -> Port:
    """The `Port` of a library pipeline."""
    return Port(
        dit=pipe.transformer,
        vae=pipe.vae,
        text=pipe.text_encoder,
        clip=getattr(pipe, "image_encoder", None),
        scheduler=pipe.scheduler,
        pipe=pipe,
    )


@dataclass(frozen=True)
class PortFault:
    """A real bug as a switch: inside `with fault.inject(port):` the port computes with the bug.

    spec_id: the row of spec Part D, "D+" for the list below its table, "B" for a class of the bug taxonomy without a
    row. bug_class: id of the bug taxonomy. needs: what the run must have for the fault to show (see `NEEDS`).
    outcome: the fault changes numbers, changes a shape, or makes the run raise.
    """

    name: str
    spec_id: str
    bug_class: str
    text: str
    inject: Callable[[Port], AbstractContextManager[None]]
    part: Part
    needs: Mapping[str, Any] = field(default_factory=dict)
    outcome: Literal["values", "shape", "error"] = "values"


NEEDS: dict[str, str] = {
    "model_type": "t2v, i2v or flf2v",
    "head_dim": "attention head dimension of the DiT",
    "dtype": "dtype of the faulty part",
    "odd_tokens": "an odd number of video tokens",
    "unequal_grid": "frames, height and width of the token grid all differ",
    "t": "a timestep that bfloat16 cannot hold",
    "solver": "kind of scheduler",
    "steps": "number of solver steps",
    "min_steps": "at least this many solver steps",
    "shift": "flow shift of the schedule",
    "begin": "index handed to set_begin_index",
    "decodes": "decode calls on one VAE (compare the last)",
    "requests": "requests on one pipeline or scheduler (compare the last)",
    "frames": "at least this many video frames",
    "latent_side": "at least this many latent rows and columns",
    "odd_latent": "an image and an area for which height or width in latents is odd before rounding to patches",
    "not_frames": "any number of frames but this",
    "not_square": "images that are not square",
    "unequal_images": "first and last image of different sizes",
    "prompt_tokens": "prompts shorter than the padded length",
    "guidance": "guidance scale other than 1",
}


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` while the block runs, then put back what was there, or remove what was not."""
    own = vars(owner)
    had, old = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


@contextmanager
def recast(objects: Iterable[Any], cls: type, **attributes: Any) -> Iterator[None]:
    """Make live objects instances of `cls`, with extra attributes, while the block runs.

    `cls` overrides a method of the objects' own class, so a deep copy of the module carries the fault with it.
    """
    before = [(item, type(item)) for item in objects]
    if not before:
        raise ValueError(f"nothing to recast to {cls.__name__}: the run does not have what the fault needs")
    for item, _ in before:
        item.__class__ = cls
        for name, value in attributes.items():
            setattr(item, name, value)
    try:
        yield
    finally:
        for item, old in before:
            item.__class__ = old
            for name in attributes:
                delattr(item, name)
