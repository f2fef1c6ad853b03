"""Bugs that nobody chose: small edits of the source of any model's forward functions, each with its class, file, line and modules by construction."""
