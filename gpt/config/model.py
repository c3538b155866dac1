"""Options of the decoder's shape."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.options import Mistake, Options, option

DIALECTS = ("gpt2", "llama", "qwen3")
ROPE_SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True)
class ModelConfig(Options):
    """The shape of the decoder, within what the three dialects can express."""

    dialect: str = option(
        "qwen3",
        "architecture and Hugging Face format: gpt2 (learned positions, LayerNorm, GELU), llama (rotary, RMSNorm, "
        "SwiGLU), qwen3 (llama with RMSNorm on queries and keys)",
        choices=DIALECTS,
    )
    n_layer: int = option(4, "transformer blocks", low=1)
    n_head: int = option(4, "query heads in each block", low=1)
    n_kv_head: int | None = option(None, "key and value heads in each block; null: as many as n_head", low=1)
    n_embd: int = option(192, "width of the residual stream", unit="features", low=1)
    head_dim: int | None = option(None, "width of one head; null: n_embd / n_head", unit="features", low=1)
    n_hidden: int | None = option(
        None, "width inside the MLP; null: 4 n_embd (gpt2), or 8/3 n_embd rounded up to a multiple of 32", low=1
    )
    context_length: int = option(128, "tokens the model sees at once", unit="tokens", low=1)
    dropout: float = option(0.0, "probability of zeroing an activation while training", low=0, below=1)
    tie_embeddings: bool = option(True, "share one matrix between the token embedding and the output head")
    positions: str = option(
        "auto",
        "auto: rotary, or learned for gpt2; sinusoidal: a fixed table, gpt2 only",
        choices=("auto", "learned", "sinusoidal", "rotary"),
    )
    rope_theta: float = option(10000.0, "base of the rotary frequencies (llama, qwen3)", above=0)
    rope_scaling: str = option(
        "none",
        "how the rotary frequencies are stretched to a longer context (llama, qwen3): linear: all by rope_factor; "
        "llama3: only the slow ones, as Llama 3.1",
        choices=ROPE_SCALINGS,
    )
    rope_factor: float = option(1.0, "what rotary frequencies are divided by (rope_scaling)", low=1)
    rope_low_freq_factor: float = option(
        1.0, "llama3 scaling: waves longer than rope_original_context / this are divided by rope_factor", above=0
    )
    rope_high_freq_factor: float = option(
        4.0, "llama3 scaling: waves shorter than rope_original_context / this are left alone", above=0
    )
    rope_original_context: int | None = option(
        None, "llama3 scaling: context before it was stretched; null: context_length", unit="tokens", low=1
    )
    norm_eps: float = option(1e-5, "added to the variance in normalisation layers", above=0)

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_width(self) -> int:
        return self.head_dim or self.n_embd // self.n_head

    @property
    def hidden_width(self) -> int:
        if self.n_hidden:
            return self.n_hidden
        return 4 * self.n_embd if self.dialect == "gpt2" else 32 * -(-8 * self.n_embd // 96)

    @property
    def original_context(self) -> int:
        return self.rope_original_context or self.context_length

    @property
    def position_kind(self) -> str:
        """`learned`, `sinusoidal` or `rotary`."""
        if self.positions != "auto":
            return self.positions
        return "learned" if self.dialect == "gpt2" else "rotary"

    def mistakes(self) -> list[Mistake]:
        found = []
        if self.head_dim is None and self.n_embd % self.n_head:
            found.append(Mistake("n_embd", f"must be a multiple of n_head={self.n_head}"))
        if self.n_head % self.kv_heads:
            found.append(Mistake("n_kv_head", f"must divide n_head={self.n_head}"))
        if self.position_kind == "rotary" and self.head_width % 2:
            found.append(
                Mistake("head_dim", f"the width of a head, {self.head_width}, must be even for rotary positions")
            )
        if (self.position_kind == "rotary") == (self.dialect == "gpt2"):
            right = "learned or sinusoidal" if self.dialect == "gpt2" else "rotary"
            found.append(Mistake("positions", f"does not go with dialect={self.dialect}; use {right}"))
        if self.dialect == "gpt2":
            if self.kv_heads != self.n_head:
                found.append(Mistake("n_kv_head", "gpt2 has no grouped queries; use llama or qwen3"))
            if self.head_dim and self.head_dim * self.n_head != self.n_embd:
                found.append(Mistake("head_dim", "in gpt2 it must be n_embd / n_head; leave it null"))
        return found + self.rope_mistakes()

    def rope_mistakes(self) -> list[Mistake]:
        if self.rope_scaling == "none":
            unused = "does nothing without rope_scaling; choose linear or llama3, or leave it 1"
            return [Mistake("rope_factor", unused)] if self.rope_factor != 1 else []
        if self.position_kind != "rotary":
            return [Mistake("rope_scaling", "needs rotary positions; use dialect=llama or qwen3, or none")]
        if self.rope_scaling == "llama3" and self.rope_high_freq_factor <= self.rope_low_freq_factor:
            greater = f"must be greater than rope_low_freq_factor={self.rope_low_freq_factor:g}"
            return [Mistake("rope_high_freq_factor", greater)]
        return []
