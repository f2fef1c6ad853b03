"""What happened: records, manifests, their files and fingerprints. No opinion, no model."""

from parity.trace.records import (
    ENDS,
    FORMAT_VERSION,
    KINDS,
    Manifest,
    MemorySource,
    Parameter,
    Record,
    Stats,
    TensorSource,
    Trace,
)

__all__ = [
    "ENDS",
    "FORMAT_VERSION",
    "KINDS",
    "Manifest",
    "MemorySource",
    "Parameter",
    "Record",
    "Stats",
    "TensorSource",
    "Trace",
]
