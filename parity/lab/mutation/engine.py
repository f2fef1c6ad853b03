"""Mutants of a family: the reference is the library's model, the port a copy in files of its own, one of which is edited."""

from __future__ import annotations

import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parity.capture import nested
from parity.lab.mutation.copies import Files, Rebinding
from parity.lab.mutation.edits import Edit, edits_of
from parity.lab.mutation.executed import executed
from parity.lab.mutation.families import Family
from parity.lab.mutation.shapes import renamed

# An edit whose outputs are nearer than this is no bug that anybody could see: the limit of the isolated comparison.
FLOOR = 2e-6


@dataclass(frozen=True)
class Mutant:
    """A port with one edit. `files`: where the edited file is, in the port's copy; `renamed`: whether its parts have other names too."""

    edit: Edit
    port: nn.Module
    file: str
    renamed: bool


class Workshop:
    """Makes the ports of one family. A context manager: the copies of the files live as long as it is open."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.counts: Counter[str] = Counter()  # mutants that were set aside, by reason

    def __enter__(self) -> Workshop:
        self._folder = tempfile.TemporaryDirectory(prefix="mutants-")
        self.reference = self.family.build()
        self.functions = executed(self.reference, lambda: self.run(self.reference))
        self.files = Files(Path(self._folder.name) / "port")
        self.outputs = outputs_of(self.run(self.reference))
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, model: nn.Module) -> Any:
        """Run a model of the family on its inputs."""
        with torch.no_grad():
            return self.call(model, **self.family.inputs())

    @property
    def call(self) -> Callable[..., Any]:
        return self.family.run or (lambda model, **inputs: model(**inputs))

    def edits(self) -> list[Edit]:
        """Return every edit of the functions that the model runs."""
        texts = {f.code.co_filename: "" for f in self.functions}
        texts = {file: Path(file).read_text(encoding="utf-8") for file in texts}
        return list(edits_of(self.functions, texts))

    def clean(self, rename: bool = False) -> nn.Module:
        """Return the port without an edit: its right twin."""
        return self._port(self.files, rename)

    def make(self, edit: Edit, number: int, rename: bool = False) -> Mutant | None:
        """Return the port with one edit; None (and a count of why) where it does not run, or computes the same."""
        why, mutant = self._try(edit, number, rename)
        self.counts[why] += 1
        return mutant

    def _try(self, edit: Edit, number: int, rename: bool) -> tuple[str, Mutant | None]:
        text = edit.apply(Path(edit.file).read_text(encoding="utf-8"))
        folder = Path(self._folder.name) / f"port{number}"
        files = Files(folder, {edit.file: text}, self.files)
        try:
            port = self._port(files, rename)
            found = outputs_of(self.run(port))
        except Exception:
            return "does not run", None
        if len(found) != len(self.outputs) or any(a.shape != b.shape for a, b in zip(found, self.outputs, strict=True)):
            return "another shape", None
        if all(torch.equal(a, b) for a, b in zip(found, self.outputs, strict=True)):
            return "equal", None
        if all(_near(a, b) for a, b in zip(found, self.outputs, strict=True)):
            return "within floors", None
        return "kept", Mutant(edit, port, str(files.path(edit.file)), rename)

    def _port(self, files: Files, rename: bool) -> nn.Module:
        port = Rebinding(files, [f.code for f in self.functions]).model(self.reference)
        return renamed(port) if rename else port

    def sample(self, count: int, seed: int) -> Iterator[Mutant]:
        """Yield up to `count` mutants, none chosen: kinds in turn, edits of a kind in an order that the seed shuffles; every second one renamed."""
        made = 0
        for number, edit in enumerate(in_turn(self.edits(), seed, self.family.name)):
            if made == count:
                return
            mutant = self.make(edit, number, rename=made % 2 == 1)
            if mutant is not None:
                made += 1
                yield mutant


def in_turn(edits: Sequence[Edit], seed: int, salt: str) -> list[Edit]:
    """Return the edits with their kinds in turn, so that frequent kinds do not crowd out rare ones; shuffled by the seed."""
    draw = random.Random(f"{seed} {salt}")
    by_kind: dict[str, list[Edit]] = defaultdict(list)
    for edit in edits:
        by_kind[edit.kind].append(edit)
    kinds = sorted(by_kind)
    for kind in kinds:
        draw.shuffle(by_kind[kind])
    draw.shuffle(kinds)
    rounds = max((len(found) for found in by_kind.values()), default=0)
    return [by_kind[kind][i] for i in range(rounds) for kind in kinds if i < len(by_kind[kind])]


def outputs_of(value: Any) -> list[Tensor]:
    """Return the tensors of a model's result, in order."""
    found: list[Tensor] = []

    def keep(path: Any, tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    nested.replace(value, keep)
    return found


def _near(found: Tensor, wanted: Tensor) -> bool:
    if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
        return torch.equal(found, wanted)
    difference, size = (found.double() - wanted.double()).norm(), wanted.double().norm()
    return bool(difference <= FLOOR * size)
