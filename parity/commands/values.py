"""Commands on values: two tensors, two clips, where NaN comes from, what quantised weights cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parity.commands.options import (
    OUT,
    BriefOption,
    CasesOption,
    HtmlOption,
    JsonOption,
    print_results,
    write_json,
    write_results,
)
from parity.console import check_outputs


def diagnose(
    reference: Annotated[str, typer.Argument(help="Tensor file of the reference: FILE.safetensors[:KEY] or FILE.npy.")],
    port: Annotated[str, typer.Argument(help="Tensor file of the port.")],
    kind: Annotated[
        str, typer.Option("--kind", help="What it is: activation, rope, kv, mask, schedule, latent, frame, weight.")
    ] = "activation",
    as_json: JsonOption = None,
    brief: BriefOption = False,
) -> int:
    """Test the hypotheses on two saved tensors."""
    from parity.api import diagnose_tensors, load_tensor

    check_outputs([as_json], inputs=[reference.partition(".safetensors:")[0], port.partition(".safetensors:")[0]])
    result = diagnose_tensors(load_tensor(reference), load_tensor(port), kind=kind)
    if brief:
        print_results([result], brief=True, saved=as_json)
    else:
        said = "match: the tensors agree" if result.verdict == "match" else result.text()
        OUT.print(said, markup=False, soft_wrap=True)
    write_results([result], as_json)
    return result.exit_status


def nonfinite(
    target: Annotated[
        str,
        typer.Argument(
            help="package.module:callable that returns (model, inputs), or system[/case][:port|:reference]."
        ),
    ],
    cases: CasesOption = None,
    as_json: JsonOption = None,
) -> int:
    """Find the first operation that makes a non-finite value from finite inputs."""
    from parity.locate.nonfinite import nonfinite_command

    check_outputs([as_json])
    found = nonfinite_command(target, cases)
    OUT.print("match: every value is finite" if found is None else found.text, markup=False, soft_wrap=True)
    write_json(found.to_json() if found else {"verdict": "match", "first": None}, as_json)
    return 0 if found is None else 1


def quant(
    target: Annotated[str, typer.Argument(help="package.module:callable that returns (model, inputs).")],
    limit: Annotated[float, typer.Option("--limit", help="Relative L2 error that the output may have.")] = 0.01,
    bits: Annotated[int, typer.Option("--bits", help="Bits of a weight.")] = 8,
    order: Annotated[str, typer.Option("--order", help="fp32: product in float32; after: scale behind it.")] = "fp32",
    top: Annotated[int, typer.Option("--top", help="Layers to print.")] = 20,
    as_json: JsonOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="SVG file of the ranking.")] = None,
) -> int:
    """Quantise the weights of every Linear: cost of each layer, and which to leave out."""
    from parity.lab.quant import quant_command

    check_outputs([as_json, plot])
    return quant_command(target, limit, bits, order, top, as_json, plot, OUT)


def video(
    reference: Annotated[Path, typer.Argument(help="Clip or frame folder of the reference.")],
    port: Annotated[Path, typer.Argument(help="Clip or frame folder of the port.")],
    as_json: JsonOption = None,
    html: HtmlOption = None,
    psnr: Annotated[float, typer.Option("--psnr", help="A frame below this PSNR (dB) is bad.")] = 35.0,
    ssim: Annotated[float, typer.Option("--ssim", help="A frame below this SSIM is bad.")] = 0.95,
    block: Annotated[
        float, typer.Option("--block", help="A frame whose worst 16 x 16 block is off by more levels (RMS) is bad.")
    ] = 24.0,
) -> int:
    """Compare two clips: per-frame figures, blank, green, frozen, flickering frames, the first bad frame."""
    from parity.boundary.arguments import limit, share
    from parity.clips.compare import Limits, compare_clips
    from parity.clips.frames import load_clip

    limits = Limits(limit("--psnr", psnr), share("--ssim", ssim), limit("--block", block))
    check_outputs([as_json], [html], inputs=[reference, port])
    left, right = load_clip(reference), load_clip(port)
    comparison = compare_clips(left, right, limits)
    for line in comparison.lines():
        OUT.print(line, markup=False, soft_wrap=True)
    write_json(comparison.to_json(), as_json)
    if html is not None:
        from parity.report.html import write_video_report
        from parity.session import page_stem

        page = html / f"{page_stem(f'{reference.stem} vs {port.stem}')}.html"
        write_video_report(comparison, left, right, page)
        OUT.print(f"report: {page}", markup=False, soft_wrap=True)
    return 0 if comparison.verdict == "match" else 1
