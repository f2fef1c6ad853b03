"""The mutation engine: edits are replaced where they say, ports run from their own files, and what is no bug is set aside."""

from __future__ import annotations

import ast
import inspect
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parity.errors import CaseError
from parity.lab.mutation.classes import OF_KIND, OF_TOPIC, TOPICS, classes_of, topic_of
from parity.lab.mutation.engine import Workshop, in_turn
from parity.lab.mutation.families import SEEN, families
from parity.lab.mutation.kinds import changes
from parity.lab.mutation.score import is_on, judge


def kinds_of(code: str) -> Counter[str]:
    return Counter(kind for kind, _ in changes(ast.parse(code, mode="eval").body))


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("a + b", {"sign", "term missing"}),
        ("a - b", {"sign", "operands exchanged", "term missing"}),
        ("-x2", {"sign"}),
        ("-1", set()),
        ("x[..., 1:]", {"off by one"}),
        ("x[..., :n]", {"off by one"}),
        ("x[i]", set()),
        ("self.norm(x)", {"left out", "twice", "rounded"}),
        ("self.dropout(x)", set()),
        ("F.gelu(x, approximate='tanh')", {"activation", "left out", "twice", "rounded"}),
        ("torch.cat([a, b], dim=1)", {"parts in another order", "axis"}),
        ("x.permute(0, 2, 1, 3)", {"axis"}),
        ("F.rms_norm(x, shape, w, eps=1e-6)", {"eps", "left out", "twice", "rounded", "arguments exchanged"}),
        ("attend(q, k, v, attn_mask=mask, is_causal=True)", {"arguments exchanged", "mask left out", "causal"}),
        ("1e-06", {"eps"}),
        ("10000.0", {"theta"}),
        ("self.scaling", {"scale"}),
        ("cache.update(k, v, i)", {"arguments exchanged", "cache unused", "cache index"}),
    ],
)
def test_changes_of_an_expression(code: str, kinds: set[str]):
    assert set(kinds_of(code)) == kinds


def test_every_class_is_an_id_and_every_entry_is_used():
    ids = {i for row in (*OF_KIND.values(), *OF_TOPIC.values()) for i in row}
    assert all(i[0] in "WPANTCVKQDS" and i[1:].isdigit() for i in ids)
    assert {kind for kind, _ in OF_TOPIC} <= set(OF_KIND)
    assert {topic for _, topic in OF_TOPIC} <= {topic for topic, _ in TOPICS}
    assert classes_of("sign", topic_of("rotate_half", ["x1", "x2"])) == ("P7", "P1")
    assert topic_of("Block.forward", ["gate_msa", "attn_output"]) == "modulation"
    assert topic_of("get_timestep_embedding", ["exponent", "downscale_freq_shift"]) == "time"


def test_families_are_split_by_the_hash_of_their_name():
    tuning, held = families("tuning"), families("held")
    assert len(tuning) >= 8
    assert len(held) >= 8
    assert not {f.name for f in held} & {*SEEN, *(f.name for f in tuning)}
    assert len(tuning) + len(held) == len(families())
    with pytest.raises(CaseError, match="no half 'other'"):
        families("other")
    with pytest.raises(CaseError, match="no family 'other'"):
        families(name="other")


@pytest.fixture(scope="module")
def shop():
    with Workshop(families(name="clip")[0]) as open_shop:
        yield open_shop


def test_the_right_twin_runs_from_files_of_its_own_and_computes_the_same(shop):
    ports = [shop.clean(), shop.clean(rename=True)]
    for port in ports:
        assert torch.equal(shop.run(port)[0], shop.run(shop.reference)[0])
    files = {
        inspect.unwrap(type(m).forward).__code__.co_filename for m in ports[0].modules() if "CLIP" in type(m).__name__
    }
    assert files
    assert not any("site-packages" in file for file in files)
    assert ports[1].state_dict().keys() != shop.reference.state_dict().keys()


def test_an_edit_changes_one_expression_and_no_other_line(shop):
    for edit in shop.edits()[::9]:
        text = Path(edit.file).read_text(encoding="utf-8")
        edited = edit.apply(text)
        before, after = text.splitlines(), edited.splitlines()
        changed = [n for n, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b]
        assert all(edit.first <= n <= edit.last for n in changed), edit.name
        ast.parse(edited)


def test_kinds_take_turns_and_a_seed_draws_its_own_order(shop):
    edits = shop.edits()
    drawn = in_turn(edits, 1, "clip")
    kinds = {edit.kind for edit in edits}
    assert {edit.kind for edit in drawn[: len(kinds)]} == kinds
    assert Counter(drawn) == Counter(edits)
    assert in_turn(edits, 2, "clip") != drawn == in_turn(edits, 1, "clip")


def test_a_mutant_is_seen_and_placed(shop):
    """A residual of the wrong sign on its line."""
    every = shop.edits()
    mutant = shop.make(next(e for e in every if (e.function, e.kind) == ("CLIPEncoderLayer.forward", "sign")), 0)
    assert mutant is not None
    outcome = judge(shop, mutant)
    assert (outcome.detected, outcome.module, outcome.line) == (True, True, True), outcome
    assert set(outcome.modules) == {"encoder.layers.0", "encoder.layers.1"}
    assert is_on(f"{mutant.file}:{mutant.edit.first}", mutant)
    assert not is_on(f"{mutant.file}:{mutant.edit.last + 1}", mutant)


def test_a_left_out_module_is_a_right_answer_too(shop):
    edit = next(e for e in shop.edits() if e.before == "self.activation_fn(hidden_states)" and e.kind == "left out")
    assert {"encoder.layers.0.mlp", "encoder.layers.1.mlp.activation_fn"} <= set(edit.modules)


def test_an_edit_that_computes_the_same_is_set_aside(shop):
    edit = next(e for e in shop.edits() if e.kind == "left out" and e.function == "CLIPMLP.forward")
    same = replace(edit, after=f"({edit.before})")
    near = replace(edit, after=f"({edit.before} * (1 + 1e-7))")
    broken = replace(edit, after="hidden_states.nothing")
    before = Counter(shop.counts)
    assert [shop.make(e, 10 + i) for i, e in enumerate((same, near, broken))] == [None] * 3
    assert shop.counts - before == {"equal": 1, "within floors": 1, "does not run": 1}
