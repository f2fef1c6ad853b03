"""Clips and frames: read, compared, and what is visibly wrong with them."""
