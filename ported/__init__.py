"""Ports: each system as its port lays it out. Imports nothing of the harness and nothing of the references."""
