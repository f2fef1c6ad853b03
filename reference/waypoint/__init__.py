"""Waypoint-1 world model, reference implementation (spec waypoint, Part A).

Read in this order: `config`, `layers`, `rope`, `cache`, `attention`, `model`, `engine`; then `precision`, `patches`,
`quant` for what the serving engine does to the model, `autoencoder` and `text` for its two ends, `weights` for loading.
"""

from reference.waypoint.autoencoder import (
    WAYPOINT_1_SMALL_DECODER,
    WAYPOINT_1_SMALL_ENCODER,
    Autoencoder,
    AutoencoderConfig,
    bake_weight_norm,
)
from reference.waypoint.cache import LayerKVCache, StaticKVCache
from reference.waypoint.config import WAYPOINT_1_SMALL, Config
from reference.waypoint.engine import Controls, Engine, Frame, ModelInputs, euler_step
from reference.waypoint.model import WorldModel
from reference.waypoint.patches import apply_inference_patches
from reference.waypoint.precision import to_engine_dtype
from reference.waypoint.quant import quantize
from reference.waypoint.weights import load_weights

__all__ = [
    "WAYPOINT_1_SMALL",
    "WAYPOINT_1_SMALL_DECODER",
    "WAYPOINT_1_SMALL_ENCODER",
    "Autoencoder",
    "AutoencoderConfig",
    "Config",
    "Controls",
    "Engine",
    "Frame",
    "LayerKVCache",
    "ModelInputs",
    "StaticKVCache",
    "WorldModel",
    "apply_inference_patches",
    "bake_weight_norm",
    "euler_step",
    "load_weights",
    "quantize",
    "to_engine_dtype",
]
