"""The Waypoint-1 world model as its port lays it out (spec part B)."""

from .build import build_model, build_pipeline, build_vae
from .config import PortOptions, WaypointConfig
from .keys import from_reference, to_reference
from .pipeline import StreamingOutput, WaypointPipeline

__all__ = [
    "PortOptions",
    "StreamingOutput",
    "WaypointConfig",
    "WaypointPipeline",
    "build_model",
    "build_pipeline",
    "build_vae",
    "from_reference",
    "to_reference",
]
