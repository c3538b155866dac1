"""Adapters against the formula of the paper, written out, and against the model without them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gpt.config import LORA_TARGETS, LoRAConfig, ModelConfig
from gpt.model.lora import LoRALinear, adapters_of, add_adapters, merge_adapters, trainable_parameter_count
from gpt.model.transformer import Decoder

from .conftest import VOCAB, make_decoder

GPT2 = ModelConfig(dialect="gpt2", n_layer=12, n_head=12, n_embd=768, context_length=1024)
TOKENS = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))


def adapted(model: Decoder, **options: object) -> Decoder:
    """The model with adapters that have learned something."""
    add_adapters(model, LoRAConfig(**({"rank": 4, "alpha": 6.0} | options)))
    with torch.no_grad():
        for adapter in adapters_of(model).values():
            adapter.lora_b.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    return model


def test_a_layer_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    base = nn.Linear(5, 7)
    layer = LoRALinear(base, rank=2, alpha=3.0)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 5)
    weight, bias, a, b = (p.detach().double() for p in (base.weight, base.bias, layer.lora_a, layer.lora_b))
    expected = x.double() @ (weight + 3.0 / 2 * b @ a).T + bias
    torch.testing.assert_close(layer(x), expected.float())


def test_adapters_change_nothing_at_first_and_are_as_wide_as_pefts(decoder: Decoder) -> None:
    before = decoder(TOKENS)
    add_adapters(decoder, LoRAConfig(rank=4))
    assert torch.equal(decoder(TOKENS), before)
    for adapter in adapters_of(decoder).values():
        assert adapter.lora_a.std().item() == pytest.approx((3 * adapter.in_features) ** -0.5, rel=0.3)


def test_only_the_adapters_train(decoder: Decoder) -> None:
    names = list(dict(decoder.named_parameters()))
    add_adapters(decoder, LoRAConfig(rank=4))
    trained = {name for name, p in decoder.named_parameters() if p.requires_grad}
    added = (f"blocks.{i}.{target}.lora_{f}" for i in range(3) for target in LORA_TARGETS for f in "ab")
    assert trained == set(added)
    assert [name for name in dict(decoder.named_parameters()) if "lora_" not in name] == names
    assert decoder.config.tie_embeddings == (decoder.head.weight is decoder.embed.weight)
    decoder(TOKENS, TOKENS).backward()
    assert {name for name, p in decoder.named_parameters() if p.grad is not None} == trained


def test_only_the_targets_get_adapters() -> None:
    model = adapted(make_decoder(), targets=("attention.out", "mlp.up"))
    assert {name.split(".", 2)[2] for name in adapters_of(model)} == {"attention.out", "mlp.up"}
    assert type(model.blocks[0].attention.qkv) is nn.Linear


def test_merging_keeps_the_function_and_gives_back_the_plain_model(decoder: Decoder) -> None:
    kinds = {name: type(module) for name, module in decoder.named_modules()}
    names = list(decoder.state_dict())
    plain = decoder(TOKENS)
    before = adapted(decoder)(TOKENS)
    merge_adapters(decoder)
    assert (before - plain).abs().max() > 0.1  # the adapters matter
    torch.testing.assert_close(decoder(TOKENS), before, atol=1e-5, rtol=0)
    assert {name: type(module) for name, module in decoder.named_modules()} == kinds
    assert list(decoder.state_dict()) == names
    assert all(parameter.requires_grad for parameter in decoder.parameters())


def loss_and_gradients(model: Decoder, forward: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    model.zero_grad()
    loss = forward(TOKENS, TOKENS)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_autocast_in_bf16_trains_fp32_factors() -> None:
    model = adapted(make_decoder())
    exact = model(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(TOKENS)
        model(TOKENS, TOKENS).backward()
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_a_model_in_bf16_merges_with_one_rounding() -> None:
    exact = adapted(make_decoder())
    narrow = copy.deepcopy(exact).to(torch.bfloat16)
    wide = copy.deepcopy(narrow).float()
    for model in (narrow, wide):
        merge_adapters(model)
    for name, weight in narrow.named_parameters():
        assert torch.equal(weight, wide.get_parameter(name).bfloat16())


@pytest.mark.slow
def test_a_compiled_model_is_the_same_in_one_graph() -> None:
    model = adapted(make_decoder())
    expected = loss_and_gradients(model, model)
    trunk = torch.compile(model.trunk, backend="aot_eager", fullgraph=True)  # as the trainer does
    found = loss_and_gradients(model, lambda inputs, targets: model(inputs, targets, trunk=trunk))
    torch.testing.assert_close(found, expected)


def test_at_rank_8_less_than_a_hundredth_of_gpt2_trains() -> None:
    with torch.device("meta"):
        model = Decoder(GPT2, 50257)
        whole = model.parameter_count()
        assert trainable_parameter_count(model) == whole + (50304 - 50257) * 768
        add_adapters(model, LoRAConfig(rank=8))
    assert trainable_parameter_count(model) == 1_179_648
    assert trainable_parameter_count(model) / whole < 0.01


@pytest.mark.slow
def test_merged_logits_of_gpt2_124m() -> None:
    torch.manual_seed(0)
    model = Decoder(GPT2, 50257)
    with torch.no_grad():
        for block in model.blocks:
            for matrix in (block.attention.out, block.mlp.down):
                matrix.weight.normal_(std=0.02)
    add_adapters(model, LoRAConfig(rank=8))
    for adapter in adapters_of(model).values():
        nn.init.normal_(adapter.lora_b, std=0.02)
    tokens = torch.randint(50257, (2, 64))
    with torch.no_grad():
        before = model(tokens)
        merge_adapters(model)
        torch.testing.assert_close(model(tokens), before, atol=1e-5, rtol=0)


def test_a_frozen_weight_costs_no_gradient_of_its_own() -> None:
    model = make_decoder()
    whole = model.flops_per_token()
    matrices = model.vocab_size * model.config.n_embd + sum(
        module.weight.numel() for block in model.blocks for module in block.modules() if isinstance(module, nn.Linear)
    )
    model.requires_grad_(False)
    assert whole - model.flops_per_token() == 2 * matrices
