"""Render results as text, Markdown, JUnit XML and HTML. It decides nothing and prints nothing."""
