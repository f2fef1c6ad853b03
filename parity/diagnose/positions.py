"""Position causes: rotary pairing, offsets, axis order, frequencies, precision and sign (BUGS.md P1–P7), and position ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from parity.diagnose.evidence import Evidence, Explanation, Hypothesis, as_float64
from parity.diagnose.position_ids import position_ids, token_ids
from parity.diagnose.roles import close, comparable, fitted, like_reference, limit, memo, noise
from parity.diagnose.rotary import Arrangement, Pairing, arrangements, as_pairs, from_pairs, pairings, turn
from parity.diagnose.rotations import Story, stories

BASES = (10000.0, 100.0, 500000.0, 1000000.0, 256.0)
SEARCH_TOKENS = 48
LARGEST = 20_000_000


@dataclass(frozen=True)
class Rotation:
    """A tensor read as a rotation of another: where its pairs come from, where they go, and the unit table [n, j]."""

    source: str
    target: str
    table: Tensor
    residual: float


def _named(ev: Evidence) -> list[tuple[str, Explanation]]:
    """Return all position stories that fit this evidence, with the names of their hypotheses."""

    def build(evidence: Evidence) -> list[tuple[str, Explanation]]:
        if not comparable(evidence) or evidence.reference.numel() > LARGEST:
            return []
        table = _is_table(evidence)
        if table and (evidence.reference.dim() < 3 or evidence.reference.is_complex()):
            return list(_table_stories(evidence))
        # a rotated query may be recorded as "rope" too
        turned = list(_rotation_stories(evidence))
        return turned or (list(_table_stories(evidence)) if table else [])

    return memo(ev, "positions", build)


def _test(name: str) -> Callable[[Evidence], Iterable[Explanation]]:
    def test(ev: Evidence) -> Iterable[Explanation]:
        return [explanation for found, explanation in _named(ev) if found == name]

    return test


def _rotation_stories(ev: Evidence) -> Iterator[tuple[str, Explanation]]:
    if not ev.reference.is_floating_point():
        return
    # tensors before rotation first; without one, R un-rotated by the usual one-axis table stands in for it
    for arrangement in arrangements(tuple(ev.reference.shape)):
        for before in _before(ev, arrangement):
            found = list(_compare_rotations(ev, arrangement, before, 0.97))
            if found:
                yield from found
                return
    for arrangement in arrangements(tuple(ev.reference.shape)):
        found = list(_without_input(ev, arrangement))
        if found:
            yield from found
            return


def _before(ev: Evidence, arrangement: Arrangement) -> Iterator[Tensor]:
    """Yield tensors [b, n, d] that have the norms of R's tokens: candidates for q or k before rotation."""
    r = arrangement.fold(ev.r)[:, :SEARCH_TOKENS]
    norms = r.norm(dim=-1)
    candidates = [x for _, x in like_reference(ev)] + _transposed(ev)
    if _sinusoidal(r):
        return  # any sinusoids are a rotation of any others
    for x in candidates:
        folded = arrangement.fold(x)
        if close(folded[:, :SEARCH_TOKENS].norm(dim=-1), norms, max(1e-4, 3 * noise(ev))):
            yield folded


def _sinusoidal(folded: Tensor) -> bool:
    """Say whether all pairs of [b, n, d] have one length, as cos and sin have: then a rotation between two such tensors says nothing."""
    for pairing in list(pairings(folded.shape[-1]).values())[:2]:
        length = as_pairs(folded, pairing).abs()
        if float(length.std()) <= 1e-3 * float(length.mean()):
            return True
    return False


def _transposed(ev: Evidence) -> list[Tensor]:
    shape = tuple(ev.reference.shape)
    if len(shape) != 4:
        return []
    other = (shape[0], shape[2], shape[1], shape[3])
    if other == shape:
        return []
    found = [v for v in ev.inputs.values() if tuple(v.shape) == other and v.is_floating_point()]
    return [as_float64(v).transpose(1, 2).contiguous() for v in found]


def _rotations(
    before: Tensor, after: Tensor, tolerance: float, prefer: tuple[str, str] | None = None
) -> list[Rotation]:
    """Return the readings of `after` [b, n, d] as a rotation of `before`, the preferred pair of layouts first."""
    known = pairings(before.shape[-1])
    count = min(before.shape[1], SEARCH_TOKENS)
    cut = slice(before.shape[1] - count, before.shape[1])  # late tokens turn; the first may not
    names = sorted(
        ((source, target) for source in known for target in known),
        key=lambda pair: (pair != prefer, pair[0] != pair[1], list(known).index(pair[0])),
    )
    found = []
    for source, target in names:
        _, residual = turn(as_pairs(before[:4, cut], known[source]), as_pairs(after[:4, cut], known[target]))
        if residual <= tolerance:
            table, residual = turn(as_pairs(before, known[source]), as_pairs(after, known[target]))
            if residual <= tolerance:
                found.append(Rotation(source, target, table, residual))
    return found


def _compare_rotations(
    ev: Evidence, arrangement: Arrangement, before: Tensor, best: float
) -> Iterator[tuple[str, Explanation]]:
    r, p = arrangement.fold(ev.r), arrangement.fold(ev.p)
    tolerance = max(2e-5, 3 * noise(ev))
    ours = _rotations(before, r, tolerance)
    if not ours:
        return
    known = pairings(arrangement.head)
    for our in ours:
        theirs = _rotations(before, p, max(tolerance, 2e-2), (our.source, our.target))
        exact = [
            t for t in theirs if float((t.table - our.table).abs().square().mean().sqrt()) < max(1e-4, 3 * noise(ev))
        ]
        for their in exact[:1]:
            named = _layout_story(ev, arrangement, before, our, their, known, best)
            if named:
                yield named
                return
        same = [t for t in theirs if (t.source, t.target) == (our.source, our.target)]
        for their in [*same, *theirs][:2]:
            named_stories = list(_told(ev, arrangement, before, our, their, known, best))
            if named_stories:
                yield from named_stories
                return


def _layout_story(
    ev: Evidence,
    arrangement: Arrangement,
    before: Tensor,
    our: Rotation,
    their: Rotation,
    known: dict[str, Pairing],
    best: float,
) -> tuple[str, Explanation] | None:
    """P1: the same angles on other pairs; or the same rotation written in another order, which is harmless if k has it too."""
    explained = arrangement.unfold(from_pairs(our.table * as_pairs(before, known[their.source]), known[their.target]))
    if their.source != our.source:
        text = f"the rotary embedding turns {their.source} pairs instead of {our.source} pairs"
        if (their.target == their.source) != (our.target == our.source):
            text += f", written out {their.target}"
        values = {"reference": our.source, "port": their.source, "output": their.target}
        found = fitted(ev, explained, text, best, "P1", **values)
        return ("rotary pairing", found[0]) if found else None
    text = (
        f"the rotation is the same but its result is written in {their.target} order instead of {our.target}: "
        "harmless when q, k and cached keys all have it"
    )
    found = fitted(ev, explained, text, best, "W4", benign=True, reference=our.target, port=their.target)
    return ("rotary output order", found[0]) if found else None


def _told(
    ev: Evidence,
    arrangement: Arrangement,
    before: Tensor,
    our: Rotation,
    their: Rotation,
    known: dict[str, Pairing],
    best: float,
) -> Iterator[tuple[str, Explanation]]:
    for story in stories(our.table, their.table, max(1e-4, 3 * noise(ev))):
        turned = from_pairs(story.table * as_pairs(before, known[their.source]), known[their.target])
        for explanation in _explain(ev, arrangement.unfold(turned), story, best):
            yield story.name, explanation


def _explain(ev: Evidence, explained: Tensor, story: Story, best: float) -> list[Explanation]:
    text, parameters = story.text, dict(story.parameters)
    frame = ev.coords.get("frame")
    if story.name == "position offset" and frame and parameters.get("offset") == -frame:
        text += f": the frame index is still 0 at frame {frame}"
    return fitted(ev, explained, text, min(best, story.best), story.class_id, **parameters)


def _without_input(ev: Evidence, arrangement: Arrangement) -> Iterator[tuple[str, Explanation]]:
    """Two rotated tensors only: suppose that R was turned by the usual table θ = n·base^(−2j/d) and see whether P follows."""
    r, p = arrangement.fold(ev.r), arrangement.fold(ev.p)
    if r.shape[1] < 3 or arrangement.head < 8:
        return
    known = pairings(arrangement.head)
    tolerance = max(1e-4, 3 * noise(ev))
    if not close(p[:, :SEARCH_TOKENS].norm(dim=-1), r[:, :SEARCH_TOKENS].norm(dim=-1), tolerance):
        return
    half = torch.arange(arrangement.head // 2, dtype=torch.float64)
    row = torch.arange(r.shape[1], dtype=torch.float64)
    for base in BASES:
        table = torch.exp(1j * row[:, None] * base ** (-half / len(half)))
        for source in ("interleaved", "half-split"):
            before = from_pairs(as_pairs(r, known[source]) * table.conj(), known[source])
            for target in ("interleaved", "half-split"):
                if target == source:
                    their = Rotation(
                        source, source, turn(as_pairs(before, known[source]), as_pairs(p, known[source]))[0], 0.0
                    )
                    found = list(
                        _told(ev, arrangement, before, Rotation(source, source, table, 0.0), their, known, 0.9)
                    )
                else:
                    our, their = Rotation(source, source, table, 0.0), Rotation(target, target, table, 0.0)
                    layout = _layout_story(ev, arrangement, before, our, their, known, 0.95)
                    found = [layout] if layout else []
                if found:
                    yield from found
                    return


def _is_table(ev: Evidence) -> bool:
    """Say whether R is a rotary table: so declared, or shown by a companion that makes a unit circle with it."""
    shape = ev.reference.shape
    rows = ev.reference.numel() // max(1, shape[-1]) if len(shape) else 0
    if rows < 2 or not (ev.reference.is_complex() or ev.reference.is_floating_point()):
        return False
    return ev.kind == "rope" or (shape[-1] >= 4 and _companions(ev) is not None)


def _flat(x: Tensor) -> Tensor:
    """Bring a table to [rows, columns], leaving out axes of size one."""
    return x.reshape(-1, x.shape[-1])


def _table_stories(ev: Evidence) -> Iterator[tuple[str, Explanation]]:
    if ev.reference.is_complex():
        zr, zp = (_flat(v.detach().cpu().to(torch.complex128)) for v in (ev.reference, ev.port))
        yield from _unit_stories(ev, zr, zp, lambda z: torch.view_as_real(z).reshape(ev.r.shape))
        return
    if float(ev.r.abs().max()) <= 1.0 + 1e-3:
        yield from _rounded_table(ev)
        yield from _cosine_stories(ev)
        return
    zr, zp = torch.exp(1j * _flat(ev.r)), torch.exp(1j * _flat(ev.p))

    def angles(z: Tensor) -> Tensor:
        return ev.p + (z * zp.conj()).angle().reshape(ev.p.shape)

    yield from _unit_stories(ev, zr, zp, angles)


def _unit_stories(
    ev: Evidence, zr: Tensor, zp: Tensor, back: Callable[[Tensor], Tensor], best: float = 0.97
) -> Iterator[tuple[str, Explanation]]:
    kept, place = _distinct_columns(zr, zp)
    for story in stories(zr[:, kept], zp[:, kept], max(1e-6, 3 * noise(ev))):
        table = story.table[:, place]
        explained = list(_explain(ev, back(table), story, best)) or list(_together(ev, zr, zp, table, story))
        for explanation in explained:
            yield story.name, explanation


def _together(ev: Evidence, zr: Tensor, zp: Tensor, table: Tensor, story: Story) -> Iterator[Explanation]:
    """Judge a story on cosine and sine at once: of small angles the cosine alone holds hardly more than rounding."""
    residual = float(torch.linalg.vector_norm(zp - table) / torch.linalg.vector_norm(zp - zr))
    if not ev.reference.is_complex() and residual <= limit(ev):
        yield Explanation(story.text, residual, 0.9 * story.best, dict(story.parameters), story.class_id)


def _distinct_columns(zr: Tensor, zp: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first of all columns that are equal on both sides, and for each column its place among those (a table written out per feature has pairs twice)."""
    both = torch.cat([zr.real, zr.imag, zp.real, zp.imag]).T
    _, group = torch.unique(both, dim=0, return_inverse=True)
    kept: dict[int, int] = {}
    for column, number in enumerate(group.tolist()):
        kept.setdefault(number, column)
    order = {number: place for place, number in enumerate(kept)}
    return torch.tensor(list(kept.values())), torch.tensor([order[number] for number in group.tolist()])


def _rounded_table(ev: Evidence) -> Iterator[tuple[str, Explanation]]:
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        text = f"the cos/sin table was rounded to {name}"
        for explanation in fitted(ev, as_float64(ev.reference.to(dtype)), text, 0.96, "P6", dtype=name):
            yield "low-precision angles", explanation


def _cosine_stories(ev: Evidence) -> Iterator[tuple[str, Explanation]]:
    """cos or sin tables: complete them with their companion where one was recorded, else by the cosine recurrence."""
    ours, theirs = _flat(ev.r), _flat(ev.p)
    pair = _companions(ev)
    if pair is not None:
        other_r, other_p, ours_is_cosine = pair

        def part(z: Tensor) -> Tensor:
            return (z.real if ours_is_cosine else z.imag).reshape(ev.r.shape)

        if ours_is_cosine:
            zr, zp = torch.complex(ours, other_r), torch.complex(theirs, other_p)
        else:
            zr, zp = torch.complex(other_r, ours), torch.complex(other_p, theirs)
        yield from _unit_stories(ev, zr, zp, part, 0.985)  # both tables say so, not one
        return
    sine = float(ours[0].abs().max()) < 1e-6
    whole_r, whole_p = _completed(ours, sine), _completed(theirs, sine)
    if whole_r is not None and whole_p is not None:
        yield from _unit_stories(ev, whole_r, whole_p, lambda z: (z.imag if sine else z.real).reshape(ev.r.shape))


def _companions(ev: Evidence) -> tuple[Tensor, Tensor, bool] | None:
    """Find the table that makes a unit circle with R, on both sides; the one whose first row is nearer to 1 is the cosine."""
    shape = ev.reference.shape
    sites = [s for s in ev.sites if s != ev.site and s.rpartition(".")[0] == ev.site.rpartition(".")[0]]
    offered: list[tuple[Tensor | None, Tensor | None]] = [(v, ev.port_inputs.get(k, v)) for k, v in ev.inputs.items()]
    offered += [(ev.ref_at(s, ev.coords), ev.port_at(s, ev.coords)) for s in sites[:16]]
    for ref, port in offered:
        if ref is None or port is None or ref.shape != shape or port.shape != shape or ref.is_complex():
            continue
        a, b = as_float64(ref), as_float64(port)
        if not 0.05 < float(a.square().mean()) < 0.95:
            continue  # ones and zeros make a circle with anything
        if (
            float((a.square() + ev.r.square() - 1).abs().max()) < 2e-2
            and float((b.square() + ev.p.square() - 1).abs().max()) < 2e-2
        ):
            return _flat(a), _flat(b), bool(_flat(ev.r)[0].sum() > _flat(a)[0].sum())
    return None


def _completed(values: Tensor, sine: bool) -> Tensor | None:
    """Recover e^{iθ} from consecutive cos (or sin) values alone: v[n+1] + v[n−1] = 2 cos ω·v[n] gives ω, least squares the phase."""
    if values.shape[0] < 4:
        return None
    middle, sides = values[1:-1], values[2:] + values[:-2]
    doubled = (middle * sides).sum(0) / middle.square().sum(0).clamp_min(1e-300)
    omega = torch.acos((doubled / 2).clamp(-1, 1))
    if float((sides - doubled * middle).abs().max()) > 1e-3:
        return None
    row = torch.arange(values.shape[0], dtype=torch.float64)
    slow = omega.abs() < 1e-4  # too slow to be told from the curvature alone: use the sine's slope where there is one
    if sine:
        omega = torch.where(slow, (values[1] - values[0]).asin(), omega)
    angle = row[:, None] * omega
    basis = torch.stack([angle.cos(), angle.sin()], -1)  # [n, j, 2]
    gram = torch.einsum("nja,njb->jab", basis, basis) + 1e-12 * torch.eye(2, dtype=torch.float64)
    weight = torch.linalg.solve(gram, torch.einsum("nja,nj->ja", basis, values))
    phase = torch.atan2(-weight[:, 1], weight[:, 0]) if not sine else torch.atan2(weight[:, 0], weight[:, 1])
    return torch.exp(1j * (angle + phase))


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis("rotary pairing", "P1", _test("rotary pairing"), 0.8),
    Hypothesis("rotary output order", "W4", _test("rotary output order"), 0.85),
    Hypothesis("frequency order", "P1", _test("frequency order"), 0.6),
    Hypothesis("rotary missing", "N5", _test("rotary missing"), 0.9),
    Hypothesis("rotation sign", "P7", _test("rotation sign"), 0.9),
    Hypothesis("band order", "P3", _test("band order"), 0.75),
    Hypothesis("position axes", "P3", _test("position axes"), 0.7),
    Hypothesis("half of the table ignored", "P4", _test("half of the table ignored"), 0.6),
    Hypothesis("position offset", "P2", _test("position offset"), 0.8),
    Hypothesis("positions frozen", "P2", _test("positions frozen"), 0.7),
    Hypothesis("positions restart", "P2", _test("positions restart"), 0.6),
    Hypothesis("positions replaced", "P2", _test("positions replaced"), 0.5),
    Hypothesis("position unit", "P5", _test("position unit"), 0.7),
    Hypothesis("rotary frequencies", "P5", _test("rotary frequencies"), 0.6),
    Hypothesis("low-precision angles", "P6", _test("low-precision angles"), 0.6),
    Hypothesis("position ids", "P2", position_ids, 0.7),
    Hypothesis("token ids", "C3", token_ids, 0.5),
)
