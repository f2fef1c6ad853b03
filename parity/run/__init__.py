"""One side's run: as deployed, upcast, moved, or continued from the reference's values."""
