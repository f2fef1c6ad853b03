"""Name maps: rules, splits, layouts both ways, and one clear line for a rule that is wrong."""

from __future__ import annotations

from math import prod

import pytest
import torch
from core_models import noise
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.errors import CaseError
from parity.trace.names import NameMap, Target, load_names, parse_names

RULES = [
    {"port": r"blocks\.(\d+)\.attn1\.to_q", "reference": r"blocks.\1.self_attn.q", "layout": "b l (h d) -> b h l d", "sizes": {"h": 2}},
    {"port": r"blocks\.(\d+)\.qkv", "split": {"axis": -1, "into": [r"blocks.\1.q", r"blocks.\1.k", r"blocks.\1.v"]}},
    {"port": r"blocks\.0\..*", "reference": "first"},
    {"port": r"gqa", "split": {"axis": 1, "into": ["q", "kv"], "sizes": [4, 2]}},
    {"port": r"drop.*", "ignore": "inactive in eval mode"},
    {"reference": r"ctrl.*", "ignore": "never used"},
    {"port": r"plain", "layout": "a b -> b a"},
]  # fmt: skip


@pytest.fixture
def names() -> NameMap:
    return parse_names(RULES)


def test_rules_are_tried_in_order_and_match_the_whole_site(names):
    assert [t.site for t in names.targets("blocks.12.attn1.to_q")] == ["blocks.12.self_attn.q"]
    assert [t.site for t in names.targets("blocks.0.attn1.to_q")] == ["blocks.0.self_attn.q"]
    assert [t.site for t in names.targets("blocks.0.other")] == ["first"]
    assert [t.site for t in names.targets("blocks.1.attn1.to_q.bias")] == ["blocks.1.attn1.to_q.bias"]
    assert [t.site for t in names.targets("blocks.3.qkv")] == ["blocks.3.q", "blocks.3.k", "blocks.3.v"]
    assert names.targets("dropout") == ()
    assert names.ignored_reference("ctrl.fc") == "never used"
    assert names.ignored_reference("xctrl") is None
    assert names.targets("ctrl.fc") == (Target("ctrl.fc"),)  # an ignored reference site says nothing of the port's
    assert names.targets("plain") == (Target("plain", "a b -> b a"),)
    assert names.targets("plain") is names.targets("plain")  # remembered: a run asks for each site many times


def test_parts_of_a_split_are_views_in_the_reference_layout(names):
    fused = noise(2, 5, 9)
    parts = [t.to_reference(fused) for t in names.targets("blocks.0.qkv")]
    assert torch.equal(torch.cat(parts, -1), fused)
    assert all(
        p.data_ptr() >= fused.data_ptr() and p.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
        for p in parts
    )
    q, kv = (t.to_reference(noise(2, 6, 3)) for t in names.targets("gqa"))
    assert (q.shape, kv.shape) == ((2, 4, 3), (2, 2, 3))


PATTERNS = (
    ("b l c -> b c l", {}, (2, 5, 6)),
    ("b l (h d) -> b h l d", {"h": 3}, (2, 5, 6)),
    ("b l (d h) -> b h l d", {"h": 3}, (2, 5, 6)),
    ("b (t h w) c -> b c t h w", {"t": 2, "h": 3}, (1, 12, 5)),
    ("b c t h w -> b t (h w) c", {}, (2, 3, 2, 4, 5)),
    ("1 l c -> l c", {}, (1, 4, 5)),
    ("(b l) c -> b l c", {"b": 2}, (6, 5)),
    ("a b -> b 1 a", {}, (3, 4)),
)


@settings(max_examples=30)
@given(
    case=st.sampled_from(PATTERNS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64]),
    parts=st.integers(1, 3),
    axis=st.integers(-2, 1),
    data=st.data(),
)
def test_to_reference_and_back_is_the_identity(case, dtype, parts, axis, data):
    """Every layout, alone and on a part of a fused tensor: what goes over and comes back is what was there."""
    pattern, sizes, shape = case
    if parts == 1:
        axis, part, widths = 0, 0, ()
        whole = shape
    else:
        axis = axis % len(shape)
        equal = data.draw(st.booleans())
        widths = tuple(shape[axis] if equal else data.draw(st.integers(1, 4)) for _ in range(parts))
        part = data.draw(st.integers(0, parts - 1))
        widths = widths[:part] + (shape[axis],) + widths[part + 1 :]
        whole = (*shape[:axis], sum(widths), *shape[axis + 1 :])
        widths = () if equal else widths
    value = (noise(*whole) * 9).to(dtype)
    target = Target("site", pattern, sizes, axis, part, widths, parts)
    seen = target.to_reference(value)
    assert seen.numel() == prod(shape)
    assert torch.equal(target.to_port(seen.clone(), value), value)
    # Another value lands on this part alone, and reads back as itself.
    other = seen.clone().double().mul(2).add(1).to(dtype)
    changed = target.to_port(other, value)
    assert changed.shape == value.shape
    assert changed.dtype == value.dtype
    assert torch.equal(target.to_reference(changed), other)
    assert int((changed != value).sum()) <= prod(shape)
    assert torch.equal(value, (noise(*whole) * 9).to(dtype))  # the port's own tensor is not written to


def test_a_value_of_another_dtype_comes_back_in_the_ports():
    old = noise(2, 6).bfloat16()
    found = Target("s", "a b -> b a").to_port(noise(6, 2, seed=1).double(), old)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, noise(6, 2, seed=1).double().t().bfloat16())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "expected a list of rules"),
        ({"port": "a"}, "expected a list of rules"),
        (None, "expected a list of rules"),
        (5, "expected a list of rules"),
        (["text"], "rule 1: expected a mapping"),
        ([{"port": "a"}, {"ref": "b"}], "rule 2: unknown keys"),
        ([{"layout": "a -> a"}], "neither 'port' nor 'reference'"),
        ([{"port": "(", "reference": "x"}], "rule 1: '\\(' is no regular expression"),
        ([{"reference": "(", "ignore": "x"}], "'\\(' is no regular expression"),
        ([{"port": "a", "layout": "b l c"}], "no einops pattern"),
        ([{"port": "a", "layout": "b -> c -> d"}], "no einops pattern"),
        ([{"port": "a", "split": ["x"]}], "'split' needs"),
        ([{"port": "a", "split": {"axis": 1}}], "'split' needs"),
        ([{"port": "a", "split": {"axis": "x", "into": ["b", "c"]}}], "rule 1: 'axis'"),
        ([{"port": "a", "split": {"into": "bc"}}], "rule 1: 'into'"),
        ([{"port": "a", "split": {"into": ["b", "c"], "sizes": [1]}}], "rule 1: 'sizes'"),
        ([{"port": "a", "split": {"into": ["b", "c"], "sizes": ["x", "y"]}}], "rule 1: 'sizes'"),
        ([{"port": "a", "sizes": {"h": "many"}}], "rule 1: 'sizes'"),
        ([{"port": "a", "sizes": 3}], "rule 1: 'sizes'"),
        ([{"port": "a(b)", "reference": r"x.\2"}], "rule 1: .*group"),
        ([{"port": "a", "split": {"into": [r"\1", "c"]}}], "rule 1: .*group"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_map_is_one_clear_line(value, message):
    with pytest.raises(CaseError, match=message) as caught:
        parse_names(value, "names.yaml")
    assert str(caught.value).startswith("names.yaml")
    assert "\n" not in str(caught.value)


def test_maps_are_read_from_yaml_and_json(tmp_path):
    file = tmp_path / "names.yaml"
    file.write_text("- {port: 'a\\.(\\d)', reference: 'b.\\1'}\n- port: c\n  ignore: not needed\n")
    assert load_names(file).targets("a.3") == (Target("b.3"),)
    assert load_names(file).targets("c") == ()
    file.write_text('[{"port": "x", "reference": "y"}]')
    assert load_names(file).targets("x") == (Target("y"),)


@pytest.mark.parametrize(
    "text",
    ["a: [", "!!python/object/apply:os.system ['touch exploded']", "- port: a\n  reference: b\n bad", b"\xff\xfe\x00"],
)
def test_an_unreadable_map_is_one_clear_line(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "names.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CaseError, match=r"cannot read the name map .*names\.yaml") as caught:
        load_names(file)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(CaseError, match="cannot read the name map"):
        load_names(tmp_path / "absent.yaml")
