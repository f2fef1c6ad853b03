"""Rotary position embeddings as numbers: which features are pairs, how far each pair was turned, what positions that says.

Every rotary implementation turns pairs of features, (a + ib)·e^{iθ[n, j]} for token n and pair j, so a tensor before and after gives
the table Z = e^{iθ} for each guess of the pairing; a guess is right when |Z| = 1 and all heads agree (ANCHORS F7, BUGS.md P1–P7).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from parity.diagnose.roles import distinct

Pairing = tuple[Tensor, Tensor]
"""Indices of the first and of the second member of each pair along the feature axis."""

HEAD_SIZES = (256, 160, 128, 96, 80, 64, 48, 40, 32, 24, 16, 12, 8)


def sections(size: int) -> list[tuple[int, ...]]:
    """Return plausible splits of a head into axis sections: even halves, thirds, quarters and the (t, h, w) splits in use."""
    third = 2 * (size // 6)
    guesses = [
        (size // 2, size // 2),
        (size // 3,) * 3,
        (size - 2 * third, third, third),
        (size // 4, size // 4, size // 2),
        (size // 2, size // 4, size // 4),
        (size // 8, 3 * size // 8, size // 2),
        (size // 4,) * 4,
    ]
    return list(dict.fromkeys(g for g in guesses if sum(g) == size and all(part > 0 and part % 2 == 0 for part in g)))


def pairings(size: int) -> dict[str, Pairing]:
    """Return the known pairings of `size` features: (2j, 2j+1); (j, j + size/2); halves within each axis section."""
    half = size // 2
    index = torch.arange(size)
    known = {"interleaved": (index[0::2], index[1::2]), "half-split": (index[:half], index[half:])}
    for parts in sections(size):
        firsts, seconds, start = [], [], 0
        for part in parts:
            firsts.append(index[start : start + part // 2])
            seconds.append(index[start + part // 2 : start + part])
            start += part
        known[f"half-split in sections {parts}"] = (torch.cat(firsts), torch.cat(seconds))
    return known


def as_pairs(x: Tensor, pairing: Pairing) -> Tensor:
    """View the last axis of `x` as complex pairs: [..., d] -> [..., d/2]."""
    return torch.complex(x[..., pairing[0]].contiguous(), x[..., pairing[1]].contiguous())


def from_pairs(z: Tensor, pairing: Pairing) -> Tensor:
    """Undo `as_pairs`: [..., d/2] complex -> [..., d]."""
    x = torch.empty(*z.shape[:-1], 2 * z.shape[-1], dtype=torch.float64)
    x[..., pairing[0]], x[..., pairing[1]] = z.real, z.imag
    return x


def turn(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """Return the unit table Z [n, j] with after ≈ Z·before over the leading axis [b, n, j], and the residual share.

    The residual is ‖after − Z·before‖ / ‖after‖ with |Z| = 1, so pairs whose norm changed, or heads that disagree, count against it.
    """
    product = (after * before.conj()).sum(0)
    table = torch.where(product.abs() > 0, product / product.abs().clamp_min(1e-300), torch.ones_like(product))
    rest = torch.linalg.vector_norm(after - table * before)
    return table, float(rest / torch.linalg.vector_norm(after).clamp_min(1e-300))


@dataclass(frozen=True)
class Arrangement:
    """How a tensor's axes read as [batch·heads, tokens, features]: `token_axis` of the original and the head size.

    samples: every sample has positions of its own (prompts padded on the left): [heads, batch·tokens, features].
    """

    shape: tuple[int, ...]
    token_axis: int
    head: int
    samples: bool = False

    def fold(self, x: Tensor) -> Tensor:
        """Bring `x` to [b, n, d]."""
        split = x.reshape(*self.shape[:-1], self.shape[-1] // self.head, self.head)
        moved = split.movedim(self.token_axis, -2)
        if self.samples:
            return moved.movedim(0, -3).reshape(-1, self.shape[0] * self.shape[self.token_axis], self.head)
        return moved.reshape(-1, self.shape[self.token_axis], self.head)

    def unfold(self, y: Tensor) -> Tensor:
        """Undo `fold`."""
        split = [*self.shape[:-1], self.shape[-1] // self.head, self.head]
        tokens = split.pop(self.token_axis)
        if self.samples:
            moved = y.reshape(*split[1:-1], self.shape[0], tokens, self.head).movedim(-3, 0)
        else:
            moved = y.reshape(*split[:-1], tokens, self.head)
        return moved.movedim(-2, self.token_axis).reshape(self.shape)


def arrangements(shape: tuple[int, ...]) -> Iterator[Arrangement]:
    """Yield the readings of a q or k shape: [.., n, d], [.., n, h, d] and, for merged heads, [.., n, h·d]."""
    if len(shape) < 2 or shape[-1] < 4 or shape[-1] % 2:
        return
    axes = [axis for axis in range(len(shape) - 1) if shape[axis] > 1] or [len(shape) - 2]
    for axis in sorted(axes, key=lambda a: (a < len(shape) - 3, -shape[a])):
        yield Arrangement(shape, axis, shape[-1])
    if len(shape) <= 3:
        for head in HEAD_SIZES:
            if shape[-1] % head == 0 and head < shape[-1]:
                yield Arrangement(shape, len(shape) - 2, head)
    if len(shape) == 4 and shape[0] > 1:
        for axis in axes:
            if axis > 0:
                yield Arrangement(shape, axis, shape[-1], samples=True)


@dataclass(frozen=True)
class Line:
    """A geometric run of angles: angle_j = amount·frequencies_j modulo a turn, frequencies_j = base^(−exponent_j / distinct)."""

    amount: float
    base: float
    exponents: Tensor
    distinct: int

    @property
    def frequencies(self) -> Tensor:
        return torch.exp(-math.log(self.base) * self.exponents / self.distinct)


@dataclass(frozen=True)
class Band:
    """Columns of a table that follow one position axis: θ[n, j] = positions[n]·omega[j].

    positions count in the band's own steps, unless the frequencies form a geometric `line`: then in the unit in which the first
    frequency is 1 (the usual ω_j = base^(−j/m)).
    """

    columns: Tensor
    stride: int
    omega: Tensor
    positions: Tensor
    line: Line | None


def bands(table: Tensor) -> list[Band]:
    """Split the columns of a unit table [n, j] into bands by how often they change, and read positions and frequencies off each."""
    moved = (table[1:] * table[:-1].conj()).angle().abs()
    changes = moved > (0.02 * moved.amax(0)).clamp_min(3e-7)
    first = torch.where(changes.any(0), changes.int().argmax(0) + 1, torch.zeros(table.shape[1], dtype=torch.long))
    found = []
    for stride in distinct(first).tolist():
        columns = torch.nonzero(first == stride).flatten()
        if stride > 0:
            found.append(_band(table, columns, int(stride)))
    return found


def _band(table: Tensor, columns: Tensor, stride: int) -> Band:
    step = (table[stride, columns] * table[0, columns].conj()).angle()
    slow = int(step.abs().argmin())
    line = geometric_line(step)
    omega = step if line is None else line.frequencies
    band = Band(columns, stride, omega, table[:, columns[slow]].angle() / omega[slow], line)
    return replace(band, positions=read_positions(table, band))


def geometric_line(angles: Tensor, tolerance: float = 1e-4) -> Line | None:
    """Fit angles [m], wrapped to (−π, π], by a geometric run whose slow end does not alias, and check all of them modulo a turn.

    Neighbours that are equal count as one frequency used twice. None when fewer than three distinct angles or no run fits.
    """
    if len(angles) < 3 or bool((angles.abs() < 1e-12).any()):
        return None
    new = torch.cat([torch.tensor([True]), (angles[1:] - angles[:-1]).abs() > 1e-9 + 1e-6 * angles[1:].abs()])
    exponents = (new.cumsum(0) - 1).to(torch.float64)
    distinct = angles[new]
    if len(distinct) < 3 or bool((torch.sign(distinct[-2:]) != torch.sign(distinct[-1])).any()):
        return None
    count = len(distinct)
    rate = float((distinct[-2] / distinct[-1]).log())
    if rate <= 1e-6:
        return None
    for last in range(count - 3, -1, -1):  # widen the lever arm while the next faster pair does not alias
        guess = float(distinct[-1]) * math.exp(rate * (count - 1 - last))
        if abs(guess) > 3.0:
            break
        rate = float((distinct[last] / distinct[-1]).abs().log()) / (count - 1 - last)
    amount = float(distinct[-1]) * math.exp(rate * (count - 1))
    line = Line(amount, math.exp(rate * count), exponents, count)
    rest = wrap(amount * line.frequencies - angles).abs()
    allowed = tolerance * torch.clamp(amount * line.frequencies.abs(), max=1e3).abs() + tolerance
    return line if bool((rest <= allowed).all()) else None


def wrap(angle: Tensor) -> Tensor:
    """Bring angles to (−π, π]."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def read_positions(table: Tensor, band: Band) -> Tensor:
    """Return the position of every row of `table` in the frequencies of `band`, refined from slow to fast pairs. [n]"""
    order = band.omega.abs().argsort()
    position = table[:, band.columns[order[0]]].angle() / band.omega[order[0]]
    for j in order[1:].tolist():
        if abs(float(band.omega[j])) > 1e-12:
            rest = wrap(table[:, band.columns[j]].angle() - position * band.omega[j])
            position = position + rest / band.omega[j]
    return position


def same_table(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Say whether two unit tables agree to `tolerance` root mean square."""
    return a.shape == b.shape and a.numel() > 0 and float((a - b).abs().square().mean().sqrt()) <= tolerance
