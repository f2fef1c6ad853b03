"""Where it starts: the first divergence, its module, its operation and line."""
