"""`python -m ported.echomimic.server`: start the API server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import uvicorn

from ported.echomimic.build import Networks
from ported.echomimic.quantise import quantise
from ported.echomimic.server.app import create_app
from ported.echomimic.server.loading import load_networks, missing_files
from ported.echomimic.server.service import Service, ServiceLimits
from ported.echomimic.settings import Limits
from ported.echomimic.tiny import tiny_networks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ported.echomimic.server", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tiny", action="store_true", help="random weights, small enough for any machine")
    which.add_argument("--models", type=Path, help="folder with the weights as safetensors")
    parser.add_argument("--poses", type=Path, required=True, help="folder of pose folders (numbered .npz files)")
    parser.add_argument("--jobs", type=Path, default=Path("jobs"), help="where jobs and clips are kept (default: jobs)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a card that has it, else float32")
    parser.add_argument("--int8", action="store_true", help="int8 weights in the denoiser, scaled in float32")
    parser.add_argument("--running", type=int, default=1, help="jobs at a time (default: 1)")
    return parser.parse_args(arguments)


def build(given: argparse.Namespace) -> Service:
    """Return the service that the command line asks for. Without all weights it starts, says so, and refuses requests."""
    cuda = torch.cuda.is_available()
    dtype = DTYPES[given.dtype] if given.dtype else torch.bfloat16 if cuda else torch.float32
    missing = () if given.tiny else missing_files(given.models)
    networks: Networks | None = None
    if given.tiny:
        networks = tiny_networks(dtype=dtype)
    elif not missing:
        networks = load_networks(given.models, dtype, "cuda" if cuda else "cpu")
    if networks is not None and given.int8:
        quantise(networks.denoising_unet, "fp32")
    side = Limits(side=16) if given.tiny else Limits()
    return Service(networks, given.poses, given.jobs, ServiceLimits(running=given.running, request=side), missing)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if not given.poses.is_dir():
        print(f"error: --poses {given.poses} is no folder", file=sys.stderr)
        return 2
    try:
        service = build(given)
    except (OSError, ValueError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    if service.missing:
        print(f"models are missing, requests get 503: {', '.join(service.missing)}", file=sys.stderr)
    try:
        uvicorn.run(create_app(service), host=given.host, port=given.port, log_level="warning")
    finally:
        service.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
