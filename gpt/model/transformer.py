"""The decoder: one compact transformer whose options span the gpt2, llama and qwen3 dialects.

Legend: B batch, T time, C width of the residual stream, H query heads, K key/value heads, D head size, F hidden
width of the MLP, V vocabulary, P vocabulary padded to a multiple of `VOCAB_MULTIPLE`.

Sources: Radford et al. 2019 (GPT-2: pre-norm, learned positions, tanh-GELU); Touvron et al. 2023 (LLaMA: RMSNorm,
SwiGLU, rotary positions of Su et al. 2021 in the half-split layout); Yang et al. 2025 (Qwen3: RMSNorm on queries
and keys); Vaswani et al. 2017 (sinusoidal positions). Structure after nanoGPT's `model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gpt.config import ModelConfig
from gpt.model.attention import cached_attention, causal_attention
from gpt.model.fused import activation_dtype, by_hand, dropout, embed_tied, normalise_and_rotate, rotate, swiglu
from gpt.model.hardware import check_memory
from gpt.model.kv_cache import KVCache
from gpt.model.loss import chunk_rows, head_loss, recomputed_loss, summed_cross_entropy
from gpt.model.norms import norm_layer

VOCAB_MULTIPLE = 64  # matrix kernels like round sizes; padding rows are never predicted and never saved
INIT_STD = 0.02
LOSS_POSITIONS = 2048  # tokens whose logits evaluation holds at once

Trunk = Callable[[Tensor, KVCache | None, bool], Tensor]  # as `Decoder.trunk`


class Decoder(nn.Module):
    """A decoder-only transformer. `forward` gives logits, or with `targets` the summed loss.

    Raises UserError where it is too large for this machine.
    """

    sinusoids: Tensor  # [T, C], of sinusoidal positions
    rotary: Tensor  # [2, T, D], of rotary positions
    forbidden: Tensor  # [P], minus infinity at the padding of the vocabulary

    def __init__(self, config: ModelConfig, vocab_size: int, only_planned: bool = False) -> None:
        """`only_planned`: it is not to hold numbers, so no machine is too small."""
        super().__init__()
        if not only_planned:
            check_memory(config, vocab_size)
        self.config, self.vocab_size = config, vocab_size
        self.recompute = False  # whether backward computes each block again instead of keeping what it needs of it
        self.sharded = False  # whether several processes hold it together (`gpt/training/parallel`)
        padded = VOCAB_MULTIPLE * math.ceil(vocab_size / VOCAB_MULTIPLE)
        self.embed = nn.Embedding(padded, config.n_embd)
        if config.position_kind == "learned":
            self.positions = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = norm_layer(config, config.n_embd)
        self.head = nn.Linear(config.n_embd, padded, bias=False)
        self.tie_and_tabulate()
        self.init_weights()

    def tie_and_tabulate(self) -> None:
        """Share the head's matrix where asked, and make the tables that follow from the configuration, never saved."""
        config = self.config
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        if config.position_kind == "sinusoidal":
            self.register_buffer("sinusoids", sinusoids(config.context_length, config.n_embd), persistent=False)
        if config.position_kind == "rotary":
            self.register_buffer("rotary", rotary_table(config), persistent=False)
        forbidden = torch.zeros(self.embed.num_embeddings)
        forbidden[self.vocab_size :] = -torch.inf
        self.register_buffer("forbidden", forbidden, persistent=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise every parameter, here and nowhere else: normal with `INIT_STD`, as GPT-2, with the layers that
        write to the residual stream starting at zero, so that each block starts as the identity."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=INIT_STD)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
            elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
                module.reset_parameters()
        for block in self.blocks:
            nn.init.zeros_(block.attention.out.weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(block.mlp.down.weight)  # type: ignore[union-attr, arg-type]
        for table in (self.embed, self.head):
            table.weight[self.vocab_size :] = 0

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Run the decoder on token ids [B, T].

        With `targets` [B, T] (`batches.IGNORE` where a position does not count): the loss in nats, summed, scalar fp32.
        Without: logits [B, T, V], or [B, 1, V] with `last_only`. With a `cache`, the tokens continue what it holds,
        and it holds them afterwards. `trunk` stands in for `self.trunk`: that compiled. Raises ValueError where they
        exceed the context.
        """
        x, table = self.embedded(tokens, cache)
        x = (trunk or self.trunk)(x, cache, last_only)
        return self.head(x)[..., : self.vocab_size] if targets is None else self.summed_loss(x, targets, table)

    def embedded(self, tokens: Tensor, cache: KVCache | None = None) -> tuple[Tensor, Tensor | None]:
        """The embeddings [B, T, C] of token ids [B, T], and the matrix [P, C] for the loss to multiply by, where it is
        tied and the gradient made by hand; else None, and it is the head's."""
        end = tokens.shape[1] + (max(cache.lengths) if cache else 0)
        if end > self.config.context_length:
            raise ValueError(f"{end} tokens exceed the context length {self.config.context_length}")
        if self.config.tie_embeddings and by_hand(self.embed.weight):
            return embed_tied(tokens, self.embed.weight)
        return self.embed(tokens), None

    def trunk(self, x: Tensor, cache: KVCache | None = None, last_only: bool = False) -> Tensor:
        """What the head reads, [B, T or 1, C], of embeddings [B, T, C]; as `forward`."""
        length = x.shape[1]
        positions = cache.positions(length) if cache else torch.arange(length, device=x.device)
        if self.config.position_kind == "learned":
            x = x + self.positions(positions)
        elif self.config.position_kind == "sinusoidal":
            x = x + self.sinusoids[positions].to(x.dtype)
        x = self.dropout(x)
        rotary = self.rotary[:, positions] if self.config.position_kind == "rotary" else None
        mask = cache.mask(length) if cache else None
        for layer, block in enumerate(self.blocks):
            x = self.run_block(block, x, rotary, layer, cache, mask)
        if cache:
            cache.advance(length)
        return self.norm(x[:, -1:] if last_only else x)

    def run_block(self, block: nn.Module, x: Tensor, *others: object) -> Tensor:
        """A block's output; with `recompute`, backward keeps `x` alone and computes the block again, with the same
        dropout (Chen et al. 2016)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, x, *others, use_reentrant=False, preserve_rng_state=self.config.dropout > 0)
        return block(x, *others)

    def summed_loss(self, x: Tensor, targets: Tensor, table: Tensor | None = None) -> Tensor:
        """The loss in nats, summed, scalar fp32. x [B, T, C], targets [B, T]; table [P, C]: as `embedded` gives it.

        No more than a chunk of the logits is there at once, without gradients `LOSS_POSITIONS` rows: those of a context
        of 40,960 tokens and a vocabulary of 151,936 would take 25 GB.
        """
        if torch.is_grad_enabled():
            if activation_dtype(x) is torch.float16:  # sums over tokens would overflow before the scaler sees them
                return recomputed_loss(self.training_logits, x, targets, chunk_rows(len(self.head.weight)))
            return head_loss(x, self.head.weight if table is None else table, targets, self.vocab_size)
        parts = zip(x.flatten(0, 1).split(LOSS_POSITIONS), targets.flatten().split(LOSS_POSITIONS), strict=True)
        return torch.stack([summed_cross_entropy(self.training_logits(part), aims) for part, aims in parts]).sum()

    def training_logits(self, x: Tensor) -> Tensor:
        """Logits over the padded vocabulary, minus infinity at the padding. x [..., C] → [..., P]."""
        if self.vocab_size == self.embed.num_embeddings:
            return self.head(x)
        if not isinstance(self.head, nn.Linear):  # laid out for decoding
            return self.head(x) + self.forbidden
        return F.linear(x, self.head.weight, self.forbidden.to(x.dtype))

    def parameter_count(self) -> int:
        """Numbers in the weights, trained or frozen, without padding of the vocabulary; a tied matrix counts once."""
        padding = (self.embed.num_embeddings - self.vocab_size) * self.config.n_embd
        tables = 1 if self.config.tie_embeddings else 2
        return sum(p.numel() for p in self.parameters()) - tables * padding

    def flops_per_token(self) -> int:
        """Floating-point operations of forward and backward for one token at full context, 6 N + 12 L H D T
        (Chowdhery et al. 2022, PaLM, appendix B), N being the weights that multiply, the head included; a frozen
        weight needs no gradient of its own and counts 4 times."""
        config = self.config
        matrices = sum((6 if (w := m.weight).requires_grad else 4) * w.numel() for m in self.linear_layers())
        padding = (self.embed.num_embeddings - self.vocab_size) * config.n_embd
        matrices -= (6 if self.head.weight.requires_grad else 4) * padding
        attention = 12 * config.n_layer * config.n_head * config.head_width * config.context_length
        return matrices + attention

    def linear_layers(self) -> Iterator[nn.Linear]:
        return (module for module in self.modules() if isinstance(module, nn.Linear))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = norm_layer(config, config.n_embd)
        self.attention = Attention(config)
        self.mlp_norm = norm_layer(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotary: Tensor | None, layer: int, cache: KVCache | None, mask: Tensor | None
    ) -> Tensor:
        """x [B, T, C] → [B, T, C]."""
        x = x + self.attention(self.attention_norm(x), rotary, layer, cache, mask)
        return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
    """Causal self-attention with grouped queries; queries, keys and values come from one matrix."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)
        self.head_width = config.head_width
        bias = config.dialect == "gpt2"
        self.qkv = nn.Linear(config.n_embd, sum(self.heads) * self.head_width, bias=bias)
        self.out = nn.Linear(config.n_head * self.head_width, config.n_embd, bias=bias)
        if config.dialect == "qwen3":
            self.q_norm = nn.RMSNorm(self.head_width, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(self.head_width, eps=config.norm_eps)
        self.normalise_qk, self.norm_eps = config.dialect == "qwen3", config.norm_eps
        self.dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotary: Tensor | None, layer: int, cache: KVCache | None, mask: Tensor | None
    ) -> Tensor:
        """x [B, T, C] → [B, T, C]; rotary as `rotate` takes it, mask as `cached_attention` does."""
        heads = self.qkv(x).unflatten(-1, (sum(self.heads), self.head_width))
        q, k, v = self.queries_keys_values(heads, rotary)
        if cache is None:
            y = causal_attention(q, k, v, self.dropout.p if self.training else 0.0)
        else:
            y = cached_attention(q, *cache.update(layer, k, v), mask)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))

    def queries_keys_values(self, heads: Tensor, rotary: Tensor | None) -> tuple[Tensor, ...]:
        """Split [B, T, H + 2 K, D] into three of [B, H or K, T, D], normalised and rotated as the dialect does."""
        if self.normalise_qk and by_hand(heads) and rotary is not None and rotary.dim() == 3:
            n_q, n_k, _ = self.heads
            weight = torch.cat((self.q_norm.weight.expand(n_q, -1), self.k_norm.weight.expand(n_k, -1)))
            turned = normalise_and_rotate(heads[:, :, : n_q + n_k], weight, rotary, self.norm_eps)
            return *turned.split((n_q, n_k), dim=1), heads[:, :, n_q + n_k :].transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=2)  # [B, T, H or K, D]
        if self.normalise_qk:
            q, k = (
                norm(x.to(norm.weight.dtype)) for norm, x in ((self.q_norm, q), (self.k_norm, k))
            )  # fp32 in autocast
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or K, T, D]
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q.to(v.dtype), k.to(v.dtype), v  # autocast leaves the normalised ones in fp32


class MLP(nn.Module):
    """down(GELU(up x)) in the gpt2 dialect, down(SiLU(gate x) * up x) in the others."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.dialect != "gpt2"
        width = config.hidden_width
        self.up = nn.Linear(config.n_embd, 2 * width if self.gated else width, bias=not self.gated)  # gate and up
        self.down = nn.Linear(width, config.n_embd, bias=not self.gated)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, C] → [B, T, C]."""
        x = self.up(x)  # [B, T, F or 2 F]
        x = swiglu(x) if self.gated else F.gelu(x, approximate="tanh")
        return self.dropout(self.down(x))


class Dropout(nn.Dropout):
    """With the faster generator of `gpt.model.fused` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def rotary_table(config: ModelConfig) -> Tensor:
    """Cosines and sines of the angle of each position and frequency, [2, T, D], as `rotate` takes them."""
    angles = torch.arange(config.context_length, dtype=torch.float32)[:, None] * rotary_frequencies(config)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """The angle in radians that each pair of features turns by per position, [D / 2]: theta^(-2d/D), scaled.

    The order of operations is that of transformers' `modeling_rope_utils.py`: at position 100,000 a last bit of a
    frequency is an angle of 0.006. The llama3 scaling divides waves longer than `long` tokens by the factor, leaves
    those shorter than `short` alone, and goes from one to the other linearly in the number of turns in between.
    """
    even = torch.arange(0, config.head_width, 2, dtype=torch.float32)
    frequencies = 1.0 / (config.rope_theta ** (even / config.head_width))
    if config.rope_scaling == "none":
        return frequencies
    stretched = frequencies / config.rope_factor
    if config.rope_scaling == "linear":
        return stretched
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    long, short = config.original_context / low, config.original_context / high
    waves = 2 * math.pi / frequencies  # in tokens
    kept = (config.original_context / waves - low) / (high - low)
    between = (1 - kept) * frequencies / config.rope_factor + kept * frequencies
    return torch.where(waves > long, stretched, torch.where(waves < short, frequencies, between))


def sinusoids(length: int, width: int) -> Tensor:
    """The fixed table of Vaswani et al., [T, C], scaled to the mean square of the token embeddings."""
    even = torch.arange(0, width, 2, dtype=torch.float32)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * 10000.0 ** (-even / width)
    table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :width]
    return table * (INIT_STD * math.sqrt(2))
