"""The site's own steps: the page of commands is what every `--help` says."""

from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the help of every command where a page says `<!-- commands -->`."""
    if "<!-- commands -->" not in markdown:
        return markdown
    from typer.testing import CliRunner

    from parity.cli import COMMANDS, app

    runner = CliRunner()
    parts = []
    for name in [*COMMANDS, "golden verify"]:
        said = runner.invoke(app, [*name.split(), "--help"], prog_name="parity").output
        parts.append(f"## parity {name}\n\n```text\n{said.strip()}\n```\n")
    return markdown.replace("<!-- commands -->", "\n".join(parts))
