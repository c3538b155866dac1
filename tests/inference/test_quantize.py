"""Laid-out weights against slow products in float64, and models of them against the model as loaded."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt.config import ModelConfig
from gpt.inference.decode import decode
from gpt.inference.quantize import GROUP, Int4Linear, Int8Linear, PackedLinear, lay_out
from gpt.inference.rows import Row
from gpt.inference.sampling import Sampling, random_stream
from gpt.model.hardware import Hardware
from gpt.model.transformer import Decoder
from gpt.options import UserError

from ..model.conftest import SHAPES, VOCAB, make_decoder
from .conftest import x86

FP32, BF16 = Hardware(torch.device("cpu"), "fp32"), Hardware(torch.device("cpu"), "bf16")
MODES = ["fp32", "bf16", "int8", "int4"]
WARM = Sampling(temperature=1.2, top_k=40)

pytestmark = [
    x86,
    pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs bf16 in oneDNN"),
]


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs + outputs)
    layer = nn.Linear(inputs, outputs, bias)
    with torch.no_grad():
        layer.weight[0] *= 30  # an output much larger than the others
        layer.weight[-1] = 0
    return layer.requires_grad_(False)


def skewed(*shape: int) -> Tensor:
    """Rows such as GELU gives: mostly near their least value; one is much larger than the others."""
    x = nn.functional.gelu(torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 2)
    x[..., 0, :] *= 100
    return x


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 320), (100, 48), (33, 7), (1, 3), (768, 64)])
@pytest.mark.parametrize("vnni", [True, False])
def test_int8_is_the_product_of_rounded_rows_and_rounded_weights(
    inputs: int, outputs: int, bias: bool, vnni: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    layer, x, steps = linear(inputs, outputs, bias), skewed(3, 4, inputs), 255 if vnni else 127
    expected = torch.zeros(3, 4, outputs, dtype=torch.float64)
    for b in range(3):
        for t in range(4):
            row = x[b, t]
            low, high = row.min(), row.max()
            u = ((row - low) / (high - low) * steps).round().double() if high > low else torch.zeros(inputs).double()
            row = low.double() + (high - low).double() / steps * u
            for o in range(outputs):
                weight = layer.weight[o].double()
                scale = weight.abs().max() / 127
                rounded = (weight / scale).round() * scale if scale > 0 else weight
                expected[b, t, o] = row @ rounded + (layer.bias[o].double() if bias else 0)
    found = Int8Linear(layer)(x)
    assert found.dtype is torch.float32
    assert relative_error(found, expected) < 1e-5


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_each_weight_is_off_by_half_a_step_at_most(kind: type[nn.Module]) -> None:
    layer = linear(64, 48)
    weights = (kind(layer)(torch.eye(64)) - layer.bias).T
    if kind is Int8Linear:
        step = layer.weight.abs().amax(1, keepdim=True) / 127
    else:
        groups = layer.weight.unflatten(1, (-1, GROUP))
        step = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(GROUP, dim=1)
    # What bf16 rounds away: of int4's scales and zeros, and of its sums with the bias.
    slack = 1e-6 if kind is Int8Linear else 2**-7 * layer.weight.abs().amax(1, keepdim=True) + 1e-6
    assert ((weights - layer.weight).abs() <= step / 2 + slack).all()
    assert not weights[-1].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (96, 320)])
def test_int4_is_the_product_with_the_weights_that_it_holds(inputs: int, outputs: int, bias: bool) -> None:
    layer, x = linear(inputs, outputs, bias), skewed(2, 5, inputs)
    made = Int4Linear(layer)
    expected = torch.zeros(2, 5, outputs, dtype=torch.float64)
    for o in range(outputs):
        weight = torch.zeros(inputs, dtype=torch.float64)
        for g in range(inputs // GROUP):
            scale, zero = made.scales_and_zeros[g, o].double()
            part = slice(g * GROUP, (g + 1) * GROUP)
            steps = ((layer.weight[o, part].double() - zero) / scale).round().clamp(-8, 7)
            weight[part] = zero + scale * steps
        expected[..., o] = x.double() @ weight + (layer.bias[o].double() if bias else 0)
    assert relative_error(made(x), expected) < 0.005  # bf16 keeps 8 bits; int4 itself is off by a tenth
    assert relative_error(made(x), layer(x)) < 0.15


def test_constant_rows_and_numbers_that_are_none() -> None:
    layer = linear(64, 48)
    made = Int8Linear(layer)
    x = torch.stack((torch.zeros(64), torch.full((64,), -3.0), torch.full((64,), torch.nan)))
    found = made(x)
    torch.testing.assert_close(found[0], layer.bias)
    assert relative_error(found[1], layer(x[1])) < 0.03
    assert found[2].isnan().all()


def laid_out(mode: str, **shape: Any) -> Decoder:
    model = make_decoder(n_embd=64, **shape)
    if mode == "bf16":
        lay_out(model.bfloat16(), BF16)
    else:
        lay_out(model, FP32, mode if mode.startswith("int") else "none")
    assert not any(type(module) is nn.Linear for module in model.modules())
    return model


def tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize(("mode", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.05), ("int4", 0.4)])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_loss_are_near_those_of_the_model_as_loaded(shape: str, mode: str, tolerance: float) -> None:
    options = SHAPES[shape] | ({"n_hidden": 96, "head_dim": 16} if shape == "qwen3-grouped" else {})
    x, targets = tokens(2, 24), tokens(2, 24).roll(1, dims=1)
    plain, model = make_decoder(n_embd=64, **options), laid_out(mode, **options)
    logits = model(x)
    assert logits.shape == (2, 24, VOCAB)
    assert relative_error(logits, plain(x)) < tolerance
    chosen = logits.double().log_softmax(dim=-1).gather(-1, targets[..., None])
    assert float(model(x, targets)) == pytest.approx(-float(chosen.sum()), rel=1e-2 if mode == "bf16" else 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_takes_any_shape(shape: str) -> None:
    plain, model = make_decoder(**SHAPES[shape]), make_decoder(**SHAPES[shape])  # 48 wide, hidden width 100 in one
    lay_out(model, FP32, "int8")
    assert relative_error(model(tokens(2, 24)), plain(tokens(2, 24))) < 0.05


def sample(model: Decoder, prompt: list[int], numbers: list[int]) -> list[list[int]]:
    rows = [Row(list(prompt), random_stream(7, number, ())) for number in numbers]
    for _ in decode(model, rows, WARM, 40, end_of_text=-1):
        pass
    return [row.tokens for row in rows]


@pytest.mark.parametrize("mode", MODES)
def test_sample_i_of_a_seed_is_the_same_alone_and_in_a_batch_of_eight(mode: str) -> None:
    model, prompt = laid_out(mode, dialect="gpt2"), tokens(1, 6)[0].tolist()
    together = sample(model, prompt, list(range(8)))
    assert len(set(map(tuple, together))) == 8
    assert together == [sample(model, prompt, [number])[0] for number in range(8)]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["bf16", "int8", "int4"])
def test_a_layer_gives_a_row_the_same_bits_alone_and_among_others(mode: str) -> None:
    kind = {"bf16": PackedLinear, "int8": Int8Linear, "int4": Int4Linear}[mode]
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    for inputs, outputs in ((64, 192), (768, 320)):
        layer, x = kind(linear(inputs, outputs).to(dtype)), skewed(1, 40, inputs)[0].to(dtype)
        for rows in (1, 2, 8):
            assert torch.equal(layer(x[:rows]), layer(x)[:rows])


def test_no_layer_is_held_twice() -> None:
    model = make_decoder(n_embd=64, dialect="gpt2", tie_embeddings=False)
    weights = [weakref.ref(module.weight) for module in model.modules() if isinstance(module, nn.Linear)]
    alive: list[int] = []
    replace = model.set_submodule

    def counting(*arguments: Any) -> None:
        alive.append(sum(weight() is not None for weight in weights))
        replace(*arguments)

    model.set_submodule = counting  # type: ignore[method-assign]
    lay_out(model, FP32, "int8")
    assert alive == list(range(len(weights), 0, -1))
    assert all(weight() is None for weight in weights)


def test_without_onednn_the_weights_stay_as_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = make_decoder()
    assert lay_out(model, FP32) == "weights as loaded"
    assert type(model.head) is nn.Linear


@pytest.mark.parametrize(
    ("quantize", "hardware", "shape", "message"),
    [
        (
            "int8",
            Hardware(torch.device("cuda"), "bf16"),
            {},
            "quantize=int8 is for processors, not cuda; add device=cpu",
        ),
        ("int4", Hardware(torch.device("mps"), "fp32"), {}, "quantize=int4 is for processors, not mps; add device=cpu"),
        ("int4", FP32, {"n_embd": 48}, "blocks.0.attention.qkv has 48 and 144; use quantize=int8"),
        ("int4", FP32, {"n_embd": 64, "n_hidden": 100}, "blocks.0.mlp.up has 64 and 200; use quantize=int8"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(
    quantize: str, hardware: Hardware, shape: dict[str, int], message: str
) -> None:
    config = ModelConfig(**({"n_layer": 1, "n_head": 4, "n_embd": 64, "context_length": 8} | shape))  # type: ignore[arg-type]
    model = Decoder(config, VOCAB)
    with pytest.raises(UserError, match=message):
        lay_out(model, hardware, quantize)
    assert type(model.head) is nn.Linear


def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", ["qnnpack"])
    with pytest.raises(UserError, match="quantize=int8 needs an x86 processor with AVX2"):
        lay_out(make_decoder(), FP32, "int8")
