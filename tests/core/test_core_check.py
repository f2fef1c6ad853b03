"""`parity.check` on any two modules: no map, other names, fused and transposed weights, other inputs; and the models are left as they were."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from core_models import Net, noise, seeded
from torch import nn

import parity
from parity.align.layouts import find_layout, patterns
from parity.compare.benign import find_permutation, is_rounding
from parity.errors import CaseError, ParityFailure, SideError
from parity.trace.names import rearrange

X = (noise(2, 5, 8),)


class Attention(nn.Module):
    """The reference: three projections, heads apart."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Fused(nn.Module):
    """The port: one projection, another backend, other names."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.scale = heads, None
        self.to_qkv, self.to_out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, hidden_states):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(hidden_states).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.to_out(y.transpose(1, 2).flatten(2))


class Model(nn.Module):
    def __init__(self, attention: type[nn.Module], names: tuple[str, str, str]) -> None:
        super().__init__()
        self.names = names
        for name, part in zip(names, (nn.LayerNorm(8), attention(), nn.Linear(8, 8)), strict=True):
            self.add_module(name, part)

    def forward(self, x):
        norm, attention, mlp = (getattr(self, n) for n in self.names)
        x = x + attention(norm(x))
        return x + nn.functional.gelu(mlp(x))


def two_models() -> tuple[nn.Module, nn.Module]:
    """A reference and its port: other module names, fused projections."""
    reference = seeded(lambda: Model(Attention, ("norm", "attn", "mlp")))
    port = seeded(lambda: Model(Fused, ("ln_1", "self_attention", "fc")), seed=1)
    attention = reference.attn
    with torch.no_grad():
        port.ln_1.load_state_dict(reference.norm.state_dict())
        port.fc.load_state_dict(reference.mlp.state_dict())
        port.self_attention.to_qkv.weight.copy_(torch.cat([m.weight for m in (attention.q, attention.k, attention.v)]))
        port.self_attention.to_qkv.bias.copy_(torch.cat([m.bias for m in (attention.q, attention.k, attention.v)]))
        port.self_attention.to_out.load_state_dict(attention.o.state_dict())
    return reference, port


def test_a_port_with_other_names_and_fused_weights_matches_without_a_map():
    result = parity.check(*two_models(), X, allow_unaligned=0.0)
    assert result.verdict == "match"
    assert result.coverage.compared >= 12
    assert any("fused weights" in note for note in result.notes)


FAULTS = {
    "eps": (lambda m: setattr(m.ln_1, "eps", 1e-3), "norm", "N1"),
    "key bias": (lambda m: m.self_attention.to_qkv.bias.data[8:16].add_(0.5), "attn.k", None),
    "scale": (lambda m: setattr(m.self_attention, "scale", 0.25), "attn", None),
    "last projection": (lambda m: m.fc.weight.data[3].zero_(), "mlp", None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_where_they_are(fault):
    inject, module, cause = FAULTS[fault]
    reference, port = two_models()
    inject(port)
    result = parity.check(reference, port, X)
    assert result.verdict == "diverged"
    assert result.culprit.module == module
    assert result.first.error > result.first.floor
    if cause:
        assert result.causes[0].class_id == cause


def test_independent_faults_are_all_found_in_one_run():
    reference, port = two_models()
    port.ln_1.eps = 1e-3
    port.fc.bias.data += 0.1
    result = parity.check(reference, port, X)
    assert [c.module for c in result.culprits] == ["norm", "mlp"]


def test_the_models_and_inputs_are_left_as_they_were():
    reference, port = two_models()
    kept = [copy.deepcopy(m.state_dict()) for m in (reference, port)]
    x = X[0].clone()
    parity.check(reference, port, (x,))
    assert torch.equal(x, X[0])
    for model, state in zip((reference, port), kept, strict=True):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(torch.equal(v, state[k]) and v.dtype is state[k].dtype for k, v in model.state_dict().items())
    assert torch.get_default_dtype() is torch.float32


def test_a_model_that_writes_into_its_inputs_harms_nobody():
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(x.mul_(0.5))

    model = seeded(Greedy)
    assert parity.check(model, copy.deepcopy(model), X).verdict == "match"
    assert torch.equal(X[0], noise(2, 5, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    reference, port = (m.to(dtype) for m in two_models())
    x = (X[0].to(dtype),)
    assert parity.check(reference, port, x).verdict == "match"
    port.self_attention.scale = 0.25
    result = parity.check(reference, port, x)
    assert (result.verdict, result.culprit.module) == ("diverged", "attn")


def test_an_eps_below_the_noise_of_bf16_is_found_in_isolation():
    reference, port = (m.to(torch.bfloat16) for m in two_models())
    port.ln_1.eps = 3e-4
    x = (noise(2, 24, 8).bfloat16(),)
    assert parity.check(reference, port, x, isolate=False).verdict == "match"
    result = parity.check(reference, port, x)
    assert (result.verdict, result.culprit.module, result.first.tier) == ("diverged", "norm", "isolation")


def test_inputs_of_each_side_keywords_and_functions():
    net = seeded(Net)
    x, gain = noise(2, 3, 6), noise(6, seed=1)
    assert parity.check(net, copy.deepcopy(net), {"x": x, "gain": gain}).verdict == "match"

    def run(model, hidden, factor):
        return model(hidden, gain=factor)

    pair = ({"x": x, "gain": gain}, (x, gain))
    assert parity.check(net, (run, copy.deepcopy(net)), pair).verdict == "match"
    other = ({"x": x, "gain": gain}, (x, gain * 2))
    result = parity.check(net, (run, copy.deepcopy(net)), other)
    assert result.verdict == "diverged"
    assert result.first.site == "model.in.gain"


def test_names_as_rules_or_a_file(tmp_path):
    reference, port = two_models()
    rules = [
        {"port": r"self_attention\.to_qkv", "split": {"axis": -1, "into": ["attn.q", "attn.k", "attn.v"]}},
        {"port": r"self_attention\.to_out(.*)", "reference": r"attn.o\1"},
        {"port": r"self_attention\.in\.hidden_states", "reference": "attn.in.x"},
        {"port": r"self_attention", "reference": "attn"},
        {"port": r"ln_1(.*)", "reference": r"norm\1"},
        {"port": r"fc(.*)", "reference": r"mlp\1"},
        {"port": r".*to_qkv\.in\..*", "ignore": "one input for three"},
        {"reference": r"attn\.[qkv]\.in\.input", "ignore": "one input for three"},
    ]
    result = parity.check(reference, port, X, names=rules, allow_unaligned=0.0)
    assert (result.verdict, result.coverage.unaligned_reference) == ("match", ())
    file = tmp_path / "names.yaml"
    file.write_text(yaml.safe_dump(rules))
    assert parity.check(reference, port, X, names=file, allow_unaligned=0.0).verdict == "match"
    assert parity.check(reference, port, X, names=rules[:1], allow_unaligned=0.0).verdict == "incomplete"
    with pytest.raises(CaseError, match="rule 1"):
        parity.check(reference, port, X, names=[{"port": "("}])


def test_a_fixed_floor_is_what_the_user_says():
    reference, port = two_models()
    port.fc.bias.data[0] += 1e-3
    assert parity.check(reference, port, X, floor=0.1, isolate=False).verdict == "match"
    assert parity.check(reference, port, X, floor=1e-6, isolate=False).verdict == "diverged"


def test_models_that_have_nothing_in_common_are_no_match():
    a, b = nn.Linear(8, 3), seeded(lambda: nn.Sequential(nn.Linear(8, 5)), seed=3)
    result = parity.check(a, b, X)
    assert result.verdict in ("diverged", "incomparable", "incomplete")
    assert result.exit_status == 1


def test_a_side_that_fails_says_which_and_where():
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            raise ValueError("first line\nsecond line")

    with pytest.raises(SideError, match=r"running the port failed: ValueError: first line \(test_core_check\.py:\d+\)"):
        parity.check(nn.Linear(8, 8), Fails(), X)


def test_assert_parity_returns_the_result_or_raises():
    reference, port = two_models()
    assert parity.assert_parity(reference, port, X).verdict == "match"
    port.ln_1.eps = 0.1
    with pytest.raises(ParityFailure, match=r"(?s)DIVERGED.*norm.*eps"):
        parity.assert_parity(reference, port, X)


# -- benign differences and layouts -----------------------------------------------------------------------------------


def test_a_permutation_of_one_axis_is_found_and_nothing_else():
    r = noise(2, 6, 8)
    index = torch.tensor([3, 1, 0, 7, 2, 6, 5, 4])
    found = find_permutation(r, r[..., index], 1e-6)
    assert (found.axis, found.index) == (2, tuple(index.tolist()))
    assert torch.equal(found.apply(r), r[..., index])
    assert find_permutation(r, r, 1e-6) is None
    assert find_permutation(r, r[..., index] * 1.01, 1e-6) is None
    assert find_permutation(r, r.flip(2).flip(1), 1e-6) is None  # two axes at once are no mere convention
    assert find_permutation(r, noise(2, 6, 8, seed=1), 1e-6) is None
    assert find_permutation(r.long(), r.long(), 1e-6) is None


def test_a_rounding_is_told_from_a_bug():
    x = noise(400).double()
    assert is_rounding(x, x.bfloat16().double(), torch.bfloat16)
    assert is_rounding(x.float(), x.bfloat16().float(), torch.bfloat16)
    assert not is_rounding(x, x * (1 + 2**-9), torch.bfloat16)  # a gain of the same size
    assert not is_rounding(x, x + 2**-9, torch.bfloat16)  # an offset
    assert not is_rounding(x, x.to(torch.float8_e4m3fn).double(), torch.bfloat16)
    assert not is_rounding(x, noise(400, seed=1).double(), torch.bfloat16)
    bad = x.clone()
    bad[0] = torch.nan
    assert not is_rounding(x, bad, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_difference_with_a_law_is_no_rounding(dtype):
    """Tanh and erf GELU are apart by about as much as a rounding to fp16, but by a function of the value."""
    x, w = noise(640).double(), noise(16, 16).double()
    assert not is_rounding(torch.nn.functional.gelu(x, approximate="tanh"), torch.nn.functional.gelu(x), dtype)
    rows = x.reshape(40, 16)
    mixed = rows @ w
    assert is_rounding(mixed, rows.to(dtype).double() @ w, dtype)
    assert is_rounding(mixed.abs(), (rows.to(dtype).double() @ w).abs(), dtype)


@pytest.mark.parametrize(
    ("pattern", "sizes", "shape"),
    [
        ("b l (h d) -> b h l d", {"h": 2}, (2, 5, 6)),
        ("b h l d -> b l (h d)", {}, (2, 3, 5, 4)),
        ("b c t h w -> b t (h w) c", {}, (1, 3, 2, 4, 5)),
        ("a b -> b a", {}, (6, 6)),
        ("1 a b -> a b", {}, (1, 3, 4)),
    ],
)
def test_layouts_are_found_from_the_values(pattern, sizes, shape):
    port = noise(*shape)
    reference = rearrange(port, pattern, sizes)
    found = find_layout(reference, port)
    assert found is not None
    assert found[2] == 0
    assert torch.equal(rearrange(port, found[0], found[1]) if found[0] else port.reshape(reference.shape), reference)


def test_layouts_need_the_same_number_of_elements():
    assert find_layout(noise(3, 4), noise(3, 5)) is None
    assert all("->" in pattern for pattern, _ in patterns((2, 3), (3, 2)))


# -- forms of a run that change nothing ------------------------------------------------------------------------------


class Shell(nn.Module):
    """A model whose child is called `model`, as language models have it; tables may be given for one sample or for all."""

    def __init__(self, model, samples=1, shift=0.0):
        super().__init__()
        self.model, self.table, self.head = model, Table(), nn.Linear(16, 3)
        self.samples, self.shift = samples, shift

    def forward(self, x):
        places = torch.arange(x.shape[1])[None].expand(self.samples, -1)
        return self.head(self.model(x + self.table(places + self.shift)))


class Table(nn.Module):
    def forward(self, places):
        return torch.sin(places[..., None] * torch.arange(1, 17) / 7.0)


def shells(**options):
    torch.manual_seed(0)
    reference = Shell(nn.Sequential(nn.Linear(16, 16), nn.GELU()))
    return reference, copy_weights(reference, Shell(nn.Sequential(nn.Linear(16, 16), nn.GELU()), **options))


def copy_weights(reference, port):
    port.load_state_dict(reference.state_dict())
    return port


TOKENS = (noise(2, 5, 16),)


def test_a_child_called_model_is_not_the_root():
    reference, port = shells()

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = port

        def forward(self, x):
            return self.inner(x)

    assert parity.check(reference, Outer(), TOKENS).verdict == "match"
    rows = {row.site for row in parity.check(reference, port, TOKENS).rows}
    assert {"root", "root.in.x", "model", "model.in.input"} <= rows


def test_a_table_for_one_sample_or_for_all_is_the_same():
    reference, port = shells(samples=2)
    for pair in ((reference, port), (port, reference)):
        result = parity.check(*pair, TOKENS)
        assert result.verdict == "match"
        assert {row.site for row in result.rows if row.how == "broadcast"} == {"table.in.places", "table"}
    result = parity.check(*shells(samples=2, shift=1), TOKENS)
    assert result.verdict == "diverged"
    assert result.culprit.module == "root"
