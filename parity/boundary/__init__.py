"""What comes from outside is checked here, once, so that nothing inside needs to doubt it: text, JSON, YAML, patterns, sizes."""
