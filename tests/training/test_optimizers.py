"""The optimizers against torch's own, and against the formulas of decay and L1."""

from __future__ import annotations

import math

import pytest
import torch

from gpt.config import LoRAConfig, ModelConfig, OptimizerConfig
from gpt.model.lora import add_adapters
from gpt.model.transformer import Decoder
from gpt.training.muon import BatchedMuon, orthogonalise
from gpt.training.optimizers import Optimizers, clip_divisor
from gpt.training.parallel.layouts import Layout


def small_model(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=8), 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def give_gradients(model: Decoder, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_batched_muon_is_torchs_muon() -> None:
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16), (3, 50)]
    torch.manual_seed(0)
    mine = [torch.randn(shape, requires_grad=True) for shape in shapes]
    theirs = [parameter.detach().clone().requires_grad_() for parameter in mine]
    options = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = BatchedMuon(mine, torch.bfloat16, **options), torch.optim.Muon(theirs, **options)
    for _ in range(5):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(mine, theirs, strict=True):
        moved = 5 * 0.02 * math.sqrt(max(1, a.shape[0] / a.shape[1]) / min(a.shape))  # bf16 rounds the updates
        torch.testing.assert_close(a, b, atol=0.05 * moved, rtol=0)


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 20, 50)
    values = torch.linalg.svdvals(orthogonalise(x, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_adamw_is_torchs_adamw_with_decay_on_matrices_only() -> None:
    model, reference = small_model(), small_model()
    config = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.3, beta1=0.8, beta2=0.9)
    optimizers = Optimizers(model, config, torch.float32)
    groups = [
        {"params": [p for p in reference.parameters() if p.dim() == d], "weight_decay": 0.3 * (d == 2)} for d in (1, 2)
    ]
    theirs = torch.optim.AdamW(groups, lr=0.005, betas=(0.8, 0.9), eps=1e-8)
    for step in range(3):
        give_gradients(model, step)
        give_gradients(reference, step)
        optimizers.step(0.5)
        theirs.step()
    for mine, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, expected)


def test_muon_moves_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    model = small_model()
    optimizers = Optimizers(model, OptimizerConfig(name="muon"), torch.float32)
    give_gradients(model, 0)
    optimizers.step(1.0)
    for path in optimizers.state_tensors():
        name, key = path.split("/")
        in_muon = name.startswith("blocks.") and model.get_parameter(name).dim() == 2
        assert (key == "momentum_buffer") == in_muon
    assert {path.split("/")[0] for path in optimizers.state_tensors()} == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_adapters_train_with_adamw_and_the_base_keeps_its_bits(name: str) -> None:
    model = small_model()
    add_adapters(model, LoRAConfig(rank=2))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizers = Optimizers(model, OptimizerConfig(name=name, l1=0.1), torch.float32)
    tokens = torch.randint(64, (2, 8))
    for _ in range(2):  # A has no gradient while B is zero
        model(tokens, tokens).backward()
        optimizers.step(1.0)
        optimizers.zero_grad()
    factors = {name for name in before if "lora_" in name}
    assert {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])} == factors
    keys = {f"{factor}/{key}" for factor in factors for key in ("exp_avg", "exp_avg_sq", "step")}
    assert optimizers.state_tensors().keys() == keys


def test_a_frozen_model_has_no_state() -> None:
    model = small_model().requires_grad_(False)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizers = Optimizers(model, OptimizerConfig(), torch.float32)
    optimizers.step(1.0)
    assert optimizers.state_tensors() == {}
    assert all(map(torch.equal, model.parameters(), before))


def test_l1_is_a_soft_threshold_on_matrices() -> None:
    plain, sparse = small_model(), small_model()
    for model, l1 in ((plain, 0.0), (sparse, 2.0)):
        give_gradients(model, 0)
        Optimizers(model, OptimizerConfig(name="adamw", lr=0.01, l1=l1), torch.float32).step(0.5)
    for before, after in zip(plain.parameters(), sparse.parameters(), strict=True):
        shrunk = before.sign() * (before.abs() - 0.01).clamp(min=0)  # lr 0.01 * scale 0.5 * l1 2
        torch.testing.assert_close(after, shrunk if before.dim() == 2 else before)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_restored_state_gives_the_same_next_step(name: str) -> None:
    model, again = small_model(), small_model()
    optimizers = Optimizers(model, OptimizerConfig(name=name), torch.float32)
    for step in range(3):
        give_gradients(model, step)
        optimizers.step(1.0)
    again.load_state_dict(model.state_dict())
    restored = Optimizers(again, OptimizerConfig(name=name), torch.float32)
    restored.load_state_tensors((path, tensor.clone()) for path, tensor in optimizers.state_tensors().items())
    for either, owner in ((model, optimizers), (again, restored)):
        give_gradients(either, 9)
        owner.step(0.7)
    for mine, expected in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_clipping_is_torchs_clipping(name: str) -> None:
    """A norm above the limit: torch scales the gradients first, these optimizers divide as they read them."""
    mine, theirs = small_model(), small_model()
    config = OptimizerConfig(name=name, eps=1e-2)  # AdamW is blind to a common factor but for eps
    first, second = Optimizers(mine, config, torch.float32), Optimizers(theirs, config, torch.float32)
    for step in range(3):
        for model in (mine, theirs):
            give_gradients(model, step)
        norm = first.gradient_norm()
        first.step(1.0, clip_divisor(norm, 0.5 + step))
        wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5 + step)
        second.step(1.0)
        assert norm.item() == pytest.approx(wanted.item(), rel=1e-5)
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_no_clipping_below_the_limit_or_without_one() -> None:
    assert clip_divisor(torch.tensor(0.7), 1.0) == 1
    assert clip_divisor(torch.tensor(7.0), 2.0) == 3.5
    assert clip_divisor(torch.tensor(7.0), 0) is None


def test_state_that_is_gathered_does_not_change_with_the_next_step() -> None:
    """A thread writes it while training goes on."""
    layout = Layout()
    layout.whole = lambda own, part: part.clone()  # type: ignore[method-assign]
    layout.whole_here = False
    model = small_model()
    optimizers = Optimizers(model, OptimizerConfig(name="adamw"), torch.bfloat16, layout)
    give_gradients(model, 0)
    optimizers.step(1.0)
    saved = optimizers.full_state()
    kept = {name: tensor.clone() for name, tensor in saved.items()}
    give_gradients(model, 1)
    optimizers.step(1.0)
    assert any(name.endswith("/step") for name in saved)
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
