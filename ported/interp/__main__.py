"""`python -m ported.interp --keyframes DIR --out clip.mp4`, and `--train FILE`. Status 0 done, 2 wrong input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ported.interp.storyboard import (
    InputError,
    load_run,
    make_board,
    read_keyframes,
    refine_board,
    save_run,
    write_clip,
)
from ported.interp.toy_training import Budget, Shape, compare, train

TINY = Path(__file__).with_name("toy_refiner.safetensors")


def make_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(prog="python -m ported.interp", description="A clip from keyframes.")
    parser.add_argument("--keyframes", type=Path, help="folder of pictures, in the order of their names")
    parser.add_argument("--out", type=Path, help="the mp4 file")
    parser.add_argument("--frames", type=int, default=16, help="frames of the clip (16)")
    parser.add_argument("--at", type=numbers, help="frames that the keyframes are, '0,5,15'; evenly spaced without")
    parser.add_argument("--fps", type=int, default=8, help="frames a second (8)")
    parser.add_argument("--size", type=dimensions, help="WIDTHxHEIGHT; the keyframes' own without")
    parser.add_argument("--seed", type=int, default=0, help="of the keyframe masks (0)")
    parser.add_argument(
        "--weights",
        type=Path,
        default=TINY,
        help="a refiner's safetensors file; a tiny one, trained on moving shapes, without",
    )
    parser.add_argument("--plain", action="store_true", help="interpolation alone")
    parser.add_argument(
        "--train", type=Path, metavar="FILE", help="train the tiny refiner on moving shapes and write it"
    )
    parser.add_argument("--steps", type=int, default=Budget.steps, help=f"of training ({Budget.steps})")
    return parser


def numbers(text: str) -> list[int]:
    """'0,5,15' -> [0, 5, 15]."""
    return [int(part) for part in text.split(",")]


def dimensions(text: str) -> tuple[int, int]:
    """'64x48' -> (64, 48)."""
    width, _, height = text.lower().partition("x")
    found = int(width), int(height)
    if min(found) < 1:
        raise ValueError(text)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or make a clip; one line at the end."""
    options = make_parser().parse_args(argv)
    try:
        if options.train is not None:
            return learn(options.train, options.steps, options.seed)
        if options.keyframes is None or options.out is None:
            raise InputError("--keyframes and --out are needed (or --train)")
        if options.fps < 1 or options.frames < 2:
            raise InputError(f"{options.frames} frames at {options.fps} a second: at least 2 and 1")
        if not options.out.resolve().parent.is_dir():
            raise InputError(f"{options.out}: its folder does not exist")
        run = load_run(options.weights)
        pictures = read_keyframes(options.keyframes, options.size, run.shape.patch_size)
        board = make_board(pictures, options.frames, options.at, run.shape.patch_size)
        clip = refine_board(run, board, options.seed, options.plain)
        write_clip(clip, options.out, options.fps)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = f"{clip.shape[2]}x{clip.shape[1]}"
    print(f"{options.out}: {len(clip)} frames of {size}, keyframes at {', '.join(map(str, board.places))}")
    return 0


def learn(path: Path, steps: int, seed: int) -> int:
    """Train the tiny refiner, write it, and say how it compares."""
    if steps < 1 or not path.resolve().parent.is_dir():
        raise InputError(f"--train {path} --steps {steps}: an existing folder and at least one step are needed")
    run = train(Shape(), Budget(steps=steps, seed=seed), lambda step, loss: None)
    save_run(run, path)
    plain, refined = compare(run)
    print(
        f"{path}: {steps} steps; held-out clips: mean squared error {refined:.5f}, interpolation {plain:.5f} ({refined / plain:.1%})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
