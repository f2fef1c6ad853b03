"""Official oddities that this reference keeps, each with the reason, and what it deliberately leaves out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirk:
    """One accepted oddity. `where` is `module:attribute` inside this package."""

    id: str
    where: str
    what: str
    reason: str
    spec: str


KEPT = (
    Quirk(
        "bank-float16",
        "control:reader_bank",
        "The banks become float16 whatever the model computes in; in float32 they are rounded, in bfloat16 attention "
        "raises a dtype error.",
        "It moves every video a little; `Models.bank_dtype` lets a bfloat16 model run.",
        "4.2, B35",
    ),
    Quirk(
        "one-frame",
        "transformer:audio_rows",
        "Audio is not flattened when the batch is as long as the rows, so a window of one frame fails.",
        "Callers must not ask for it.",
        "4.3",
    ),
    Quirk(
        "standard-cfg-1",
        "pipeline:predict",
        "The standard pipeline doubles the banks always, and divides overlapping windows only with guidance: at scale 1 "
        "attention raises.",
        "The accelerated pipeline is the repaired one.",
        "8, B20",
    ),
    Quirk(
        "through-x0",
        "pipeline:through_x0",
        "The accelerated pipeline turns each prediction into x0 and back, which is the identity but for rounding.",
        "It is in every accelerated video; in float16 it matters from some 20 steps on.",
        "8",
    ),
    Quirk(
        "last-step",
        "scheduler:DDIM.previous",
        "The previous time step is t - 1000 // N: with N = 6 the last step lands on time step 0, not on the clean latent.",
        "Six steps is the accelerated default.",
        "7",
    ),
    Quirk(
        "pose-canvas",
        "pose_maps:pose_map",
        "The canvas has the width as its number of rows: only squares of the drawn size work.",
        "Every shipped pose file is 768 x 768. `official=False` cuts instead, on a canvas of the right shape.",
        "6.2, B09",
    ),
    Quirk(
        "more-windows",
        "audio:window_positions",
        "A few more audio windows are made than there are frames.",
        "The length of a video is the smaller number.",
        "6.3",
    ),
    Quirk(
        "window-fps",
        "audio:DEFAULT_FPS",
        "The windows default to 25 frames a second, the models to 24.",
        "Callers pass 24.",
        "6.3, B12",
    ),
    Quirk(
        "audio-ratio",
        "transformer:AUDIO_FEATURE_RATIO",
        "Audio attention is weighted by 3.",
        "The models were made to be used so.",
        "4.3",
    ),
    Quirk(
        "motion-groups",
        "config:MOTION_GROUPS",
        "Motion modules always have 32 groups, whatever the configuration says.",
        "A literal upstream.",
        "5",
    ),
    Quirk(
        "groupnorm-over-frames",
        "layers:GroupNorm",
        "With `use_inflated_groupnorm` off, the denoiser's ResNet norms average over all frames.",
        "It is what the fallback without a motion file builds.",
        "1.2, B23",
    ),
    Quirk(
        "unguarded-cast",
        "frames:to_uint8",
        "Bytes are cast without a clamp: what is not finite becomes 0 on x86, what is out of range wraps.",
        "The blank video is black because of it.",
        "8.1, B05",
    ),
    Quirk(
        "picture-resize",
        "image:picture_to_tensor",
        "The standard caller resizes with bicubic before the pipeline's Lanczos, the accelerated one does not.",
        "The two variants differ by it.",
        "6.4, B34",
    ),
)

NOT_REPRODUCED = {
    "non-strict": (
        "Upstream loads the denoiser with `strict=False` over SD weights of equal shapes, so missing or renamed keys "
        "are silent (B22). Here every file loads strictly."
    ),
    "pickled pose files": "The same arrays are read from .npz; a directory entry that is no pose does not count.",
    "masks on cuda": "The masks of the control object are made on a hard-coded device; here they follow the tensors.",
    "global patching": (
        "Upstream replaces `forward` of the shared modules and keeps banks on them between calls (B29); here banks are "
        "arguments."
    ),
    "moviepy": "Files are written by PyAV; bytes of an mp4 depend on the encoder, frames do not.",
}
