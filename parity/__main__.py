"""`python -m parity`, and the command `parity`: the command line, or one line that says what a slim install lacks."""

import sys


def main() -> None:
    """Run the command line. Without its libraries only recording is there: `python -m parity.capture`."""
    try:
        from parity.cli import main as run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "parity":
            raise
        sys.exit(
            f"parity: {error.name} is not installed: pip install 'parity[all]' (recording alone: python -m parity.capture)"
        )
    run()


if __name__ == "__main__":
    main()
