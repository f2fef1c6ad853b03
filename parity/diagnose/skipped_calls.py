"""A module that is called several times in one place: the port leaves a call out, so that its later calls are the reference's next ones (N5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .evidence import Evidence, Explanation, Hypothesis, as_float64
from .roles import close, noise

MOST = 3  # calls left out


def skipped_call(ev: Evidence) -> Iterator[Explanation]:
    """P at call k is R at call k + n, and not R at call k."""
    if ev.kind in ("kv", "weight", "mask", "rope", "schedule") or ev.port.numel() < 8 or ev.port.is_complex():
        return
    port, call = as_float64(ev.port), int(ev.coords.get("call", 0))
    if ev.same_shape and close(port, ev.r, 1e-3 + 2 * noise(ev)):
        return
    for step in range(1, MOST + 1):
        value = ev.ref_at(ev.site, _at_call(ev.coords, call + step))
        if value is None:
            return
        if value.shape == ev.port.shape and close(port, as_float64(value), 1e-5 + 2 * noise(ev)):
            what = ev.site.partition(".in.")[0]
            calls = "a call" if step == 1 else f"{step} calls"
            text = f"the port leaves out {calls} of {what}: its call {call} is the reference's call {call + step}"
            yield Explanation(text, 0.0, 0.93, {"call": call, "left_out": step})
            return


def _at_call(coords: Mapping[str, int], call: int) -> dict[str, int]:
    return {**{axis: i for axis, i in coords.items() if axis != "call"}, "call": call}


HYPOTHESES: tuple[Hypothesis, ...] = (Hypothesis("skipped call", "N5", skipped_call, 0.7),)
