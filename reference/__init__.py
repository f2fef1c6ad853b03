"""Reference implementations: each system as its authors define it, in plain torch, written for reading."""
