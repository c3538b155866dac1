"""Operations with hand-derived gradients against autograd on the plain definitions, in float64 terms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.config import ModelConfig
from gpt.model.attention import blocked_causal_attention
from gpt.model.fused import dropout, dropout_mask, embed_tied, normalise_and_rotate, rms_norm, swiglu
from gpt.model.kv_cache import KVCache
from gpt.model.loss import HeadLoss, head_loss, recomputed_loss
from gpt.model.transformer import Decoder
from gpt.text.batches import IGNORE
from gpt.training.rehearsal import LiveBytes

EPS = 1e-5


def gradients(function, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradients of a random weighting of it, in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    weights = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view(output.shape)
    (output.double() * weights).sum().backward()
    return [output.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def agree(fused, plain, *inputs: Tensor, tolerance: float = 1e-5) -> None:
    exact = gradients(plain, *(x.double() for x in inputs))
    for got, wanted in zip(gradients(fused, *inputs), exact, strict=True):
        assert (got - wanted).norm() <= tolerance * wanted.norm()


def test_a_tied_matrix_gets_both_gradients_in_one_place():
    torch.manual_seed(0)
    tokens = torch.tensor([[3, 1, 3], [0, 3, 1]])

    def through(embed):
        def function(weight: Tensor, factor: Tensor) -> Tensor:
            rows, table = embed(tokens, weight)
            return (rows * factor) @ table.T

        return function

    agree(
        through(embed_tied), through(lambda tokens, weight: (weight[tokens], weight)), torch.randn(5, 4), torch.rand(4)
    )

    weight = torch.randn(1000, 64, requires_grad=True)
    peaks = []
    for embed in (embed_tied, lambda tokens, weight: (F.embedding(tokens, weight), weight)):
        rows, table = embed(tokens, weight)
        loss = head_loss(rows, table, tokens, 1000)  # makes the table's gradient at once
        with LiveBytes() as counted:
            loss.backward()
        peaks.append(counted.peak / weight.nbytes)
    assert peaks[0] < 0.1
    assert peaks[1] > 1


def test_rms_norm():
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight

    torch.manual_seed(0)
    agree(lambda x, w: rms_norm(x, w, EPS), plain, torch.randn(2, 3, 10), torch.rand(10))


def test_swiglu():
    torch.manual_seed(0)
    x = 3 * torch.randn(2, 3, 14)
    agree(swiglu, lambda x: F.silu(x[..., :7]) * x[..., 7:], x)
    agree(swiglu, lambda x: F.silu(x[..., :7]) * x[..., 7:], x.bfloat16(), tolerance=0.01)


def test_normalise_and_rotate():
    torch.manual_seed(0)
    angles = torch.rand(5, 4, dtype=torch.float64) * 6
    rotary = torch.stack((angles.cos(), angles.sin()))

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
        turned = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1).contiguous())
        turned = torch.view_as_real(turned * torch.polar(torch.ones_like(angles), angles)[:, None])
        return torch.cat(turned.unbind(-1), dim=-1).transpose(1, 2)

    def fused(x: Tensor, weight: Tensor) -> Tensor:
        cos, sin = rotary.float()
        table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))
        return normalise_and_rotate(x, weight, table, EPS)

    agree(fused, plain, torch.randn(2, 5, 3, 8), torch.rand(3, 8))


@pytest.mark.parametrize(("length", "heads", "kv_heads"), [(7, 2, 2), (128, 2, 1), (300, 6, 2), (257, 3, 3)])
def test_blocked_attention(length: int, heads: int, kv_heads: int):
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
        scores = q @ k.mT / 8**0.5
        return scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1) @ v

    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, n, 8).transpose(1, 2) for n in (heads, kv_heads, kv_heads))
    agree(blocked_causal_attention, plain, q, k, v)
    agree(blocked_causal_attention, plain, q.bfloat16(), k.bfloat16(), v.bfloat16(), tolerance=0.02)


def test_attention_dropout_is_the_same_in_both_passes():
    """The output is linear in v with the weights that the dropout left: so is the gradient of v, its transpose."""
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 200, 8), torch.randn(1, 2, 200, 8)
    v = torch.eye(200).expand(1, 2, 200, 200).clone().requires_grad_()
    q = F.pad(q, (0, 192))  # the width of a head is that of v
    k = F.pad(k, (0, 192))
    weights = blocked_causal_attention(q, k, v, 0.25)
    dropped = (weights.detach() == 0).double().mean().item() - 199 / 400  # above the diagonal all are
    assert dropped == pytest.approx(0.25 * 201 / 400, abs=0.01)
    weights.backward(torch.eye(200).expand(1, 2, 200, 200))
    torch.testing.assert_close(v.grad, weights.detach().mT.contiguous())


@pytest.mark.parametrize(("rows", "pieces"), [(100, 1 << 24), (32, 1 << 24), (100, 64 * 12), (16, 128 * 12)])
@pytest.mark.parametrize("vocab_size", [150, 192])
def test_head_loss(monkeypatch, rows: int, pieces: int, vocab_size: int):
    """In chunks of rows and pieces of the vocabulary, with padded vocabulary and positions that do not count."""
    monkeypatch.setattr("gpt.model.loss.PIECE", pieces)
    torch.manual_seed(0)
    targets = torch.randint(0, vocab_size, (100,))
    targets[::7] = IGNORE

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight[:vocab_size].T, targets, ignore_index=IGNORE, reduction="sum")

    def fused(x: Tensor, weight: Tensor) -> Tensor:
        return HeadLoss.apply(x, weight, targets, vocab_size, torch.float32, rows)

    agree(fused, plain, torch.randn(100, 12), torch.randn(192, 12))


def test_head_loss_in_bf16_is_as_good_as_autocast():
    torch.manual_seed(0)
    x, weight, targets = torch.randn(2, 40, 32), torch.randn(128, 32), torch.randint(0, 100, (2, 40))

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        logits = (x @ weight[:100].T).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    exact = gradients(plain, x.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16):
        common = gradients(plain, x, weight)
        ours = gradients(lambda x, w: head_loss(x, w, targets, 100), x, weight)
    for good, usual, ideal in zip(ours, common, exact, strict=True):
        assert (good - ideal).norm() <= 1.2 * (usual - ideal).norm() + 1e-6


@pytest.mark.parametrize("lead", [2.0, 8.0, 16.0])
def test_head_loss_in_bf16_learns_from_what_it_is_nearly_certain_of(lead: float):
    """The next number of bf16 below 1 is 0.996; the target has 0.1, 0.98 and 0.99999. Logits are exact in bf16."""
    torch.manual_seed(0)
    x, weight = torch.zeros(1, 8), torch.randn(64, 8).bfloat16().float()
    x[:, 0], weight[:, 0], weight[5, 0] = lead, -1 - torch.arange(64) / 64, 0

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight.T, torch.tensor([5]))

    with torch.autocast("cpu", torch.bfloat16):
        agree(lambda x, w: head_loss(x, w, torch.tensor([5]), 64), plain, x, weight, tolerance=0.01)


def test_head_loss_in_bf16_is_exact_where_rounding_goes_one_way():
    """As at the start of a training, where all tokens are equally likely."""
    x, weight, targets = torch.zeros(50, 32), torch.randn(50304, 32), torch.arange(50)
    with torch.autocast("cpu", torch.bfloat16):
        assert head_loss(x, weight, targets, 50_257) / 50 == pytest.approx(math.log(50_257), abs=1e-4)


def test_a_loss_beyond_fp32_probabilities_is_finite():
    x, weight = torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0]])
    assert head_loss(x, weight, torch.tensor([1]), 2) == pytest.approx(87.3, abs=0.1)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.999])
def test_dropout_keeps_the_mean_and_its_share(probability: float):
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(1001, 1003), probability)
    share, count = (mask == 0).double().mean().item(), mask.numel()
    assert share == pytest.approx(probability, abs=5 * (probability * (1 - probability) / count) ** 0.5)
    assert mask[mask != 0].unique().tolist() == [pytest.approx(1 / (1 - probability), rel=1e-2)]
    assert mask.double().mean().item() == pytest.approx(1, abs=5 * (1 / (1 - probability) / count) ** 0.5)
    rows = (mask == 0).double().mean(dim=1)  # neighbours share 64 random bits; they must not share the draw
    assert rows.std() == pytest.approx((probability * (1 - probability) / 1003) ** 0.5, rel=0.2)


def test_dropout_of_nothing_is_the_input():
    x = torch.randn(3)
    assert dropout(x, 0.0) is x


def test_second_derivatives_are_refused():
    x, weight = torch.randn(3, 4, requires_grad=True), torch.rand(4, requires_grad=True)
    (first,) = torch.autograd.grad(rms_norm(x, weight, EPS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_attention_without_gradients_keeps_one_block_at_a_time():
    q = torch.randn(1, 2, 2048, 4)
    with torch.no_grad(), LiveBytes() as live:
        blocked_causal_attention(q, q, q)
    assert live.peak < 4 * 2 * 2048 * 2048 / 3, "less than a third of all probabilities"


def test_a_cached_forward_is_the_same_with_gradients():
    """Rows of unequal length turn by angles of their own."""
    torch.manual_seed(0)
    config = ModelConfig(n_layer=1, n_head=3, n_embd=24, context_length=16)
    model = Decoder(config, 40)
    torch.nn.init.normal_(model.blocks[0].attention.out.weight)
    found = []
    for training in (True, False):
        cache = KVCache(config, 2, 16, "cpu", torch.float32)
        with torch.set_grad_enabled(training):
            cache.lengths = [2, 5]
            found.append(model(torch.arange(6).view(2, 3), cache=cache).detach())
    torch.testing.assert_close(*found)


def test_the_gradient_of_many_tokens_fits_fp16():
    """Divided by their number before it is made, as a sum it would not."""
    model = Decoder(ModelConfig(n_layer=1, n_head=1, n_embd=8, context_length=4), 64)
    x, targets = torch.randn(20_000, 1, 8), torch.randint(64, (20_000, 1))
    x[..., 0] = 30
    with torch.autocast("cpu", torch.float16):
        (model.summed_loss(x, targets) / len(x)).backward()
    assert model.head.weight.grad.isfinite().all()


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_a_recomputed_loss_is_that_of_all_logits_and_keeps_few_of_them(rows: int):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 7, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (3, 7))
    targets[0, 2] = targets[2, 6] = IGNORE
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = recomputed_loss(lambda part: part @ weight.T, x, targets, rows)
    assert max(kept, default=0) <= max(x.numel(), targets.numel())  # not the 21 × 50 logits
    wanted = torch.nn.functional.cross_entropy(
        (x @ weight.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (x, weight)), torch.autograd.grad(wanted, (x, weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
