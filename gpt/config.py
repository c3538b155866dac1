"""Every option of Newleaf: its meaning, unit, default and validation, in frozen dataclasses.

This file imports neither torch nor Hydra, so `--help` is quick and any room of the house may use it.
`gpt/cli.py` turns the command line into these classes (the idea is lingua's: YAML becomes a dataclass at
the door); code may also construct them directly. `gpt/options.py` is the machinery behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt.options import Mistake, Options, group, option

DIALECTS = ("gpt2", "llama", "qwen3")


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
        return 4 * self.n_embd if self.dialect == "gpt2" else 32 * math.ceil(8 * self.n_embd / 3 / 32)

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
        return found


TOKENIZERS = ("byte", "char", "bpe", "gpt2", "huggingface")


@dataclass(frozen=True)
class TokenizerConfig(Options):
    """How text becomes tokens."""

    name: str = option(
        "bpe",
        "byte (256 tokens), char (one token a character), bpe (trained on the corpus), gpt2 (released), huggingface",
        choices=TOKENIZERS,
    )
    vocab_size: int | None = option(
        None, "tokens of a trained bpe, end of text included; null: chosen from the size and language", low=257
    )
    path: str | None = option(None, "huggingface: a tokenizer.json, or a folder that contains one", free_text=True)

    def mistakes(self) -> list[Mistake]:
        found = []
        if self.vocab_size is not None and self.name != "bpe":
            found.append(Mistake("vocab_size", f"is only for tokenizer=bpe, not {self.name}"))
        if self.name == "huggingface" and not self.path:
            found.append(
                Mistake("path", "tokenizer=huggingface needs tokenizer.path=FILE (a tokenizer.json) or a folder")
            )
        if self.path is not None and self.name != "huggingface":
            found.append(Mistake("path", f"is only for tokenizer=huggingface, not {self.name}"))
        return found


SOURCES = ("stdlib", "text", "jsonl", "huggingface", "shakespeare")


@dataclass(frozen=True)
class DataConfig(Options):
    """Where documents come from and how they are split."""

    name: str = option(
        "stdlib",
        "stdlib (Python's own source, nothing downloaded), text, jsonl, huggingface (Hub or local parquet, CSV, JSON), "
        "shakespeare (downloaded once)",
        choices=SOURCES,
    )
    files: tuple[str, ...] = option(
        (), "text, jsonl, local huggingface: files, folders or globs, as '[a.txt,notes/**/*.md]'", free_text=True
    )
    val_files: tuple[str, ...] = option(
        (), "held-out files, instead of splitting `files` by val_fraction", free_text=True
    )
    val_fraction: float = option(
        0.1, "share of the documents held out, by a hash of their text; of one document, its end", above=0, below=1
    )
    documents: str = option(
        "whole",
        "text: each file is one document (whole), or blank lines separate documents",
        choices=("whole", "blank_line"),
    )
    template: str = option(
        "{text}", "jsonl, huggingface: a document from the fields of a record", free_text=True, escapes=True
    )
    column: str | None = option(
        None, "huggingface: the column with the text, short for template={column}", free_text=True
    )
    path: str | None = option(None, "huggingface: id of a data set on the Hub, or a local folder", free_text=True)
    subset: str | None = option(None, "huggingface: configuration of the data set", free_text=True)
    split: str = option("train", "huggingface: split of the data set", free_text=True)
    prepared_dir: str = option("", "where token shards are kept; empty: data/prepared", free_text=True)
    workers: int = option(0, "processes that tokenize; 0: one for each core", low=0)

    def mistakes(self) -> list[Mistake]:
        found = []
        takes_files = self.name in ("text", "jsonl", "huggingface")
        if self.files and not takes_files:
            found.append(Mistake("files", f"data={self.name} takes no files; use data=text, jsonl or huggingface"))
        if self.val_files and not self.files:
            found.append(Mistake("val_files", "needs data.files as well"))
        if self.name in ("text", "jsonl") and not self.files:
            found.append(
                Mistake("files", f"data={self.name} needs data.files, as data.files='[book.txt,notes/**/*.md]'")
            )
        if self.name == "huggingface" and bool(self.files) == bool(self.path):
            found.append(
                Mistake("path", "data=huggingface needs either data.path (a Hub id) or data.files (local files)")
            )
        if self.name != "huggingface":
            for name in ("column", "path", "subset"):
                if getattr(self, name) is not None:
                    found.append(Mistake(name, f"is only for data=huggingface, not {self.name}"))
        if self.name not in ("jsonl", "huggingface") and self.template != "{text}":
            found.append(Mistake("template", f"is only for data=jsonl or huggingface, not {self.name}"))
        if self.column is not None and self.template != "{text}":
            found.append(Mistake("column", "give data.column or data.template, not both"))
        if self.name != "text" and self.documents != "whole":
            found.append(Mistake("documents", f"is only for data=text, not {self.name}"))
        return found


@dataclass(frozen=True)
class OptimizerConfig(Options):
    """How gradients become updates."""

    name: str = option(
        "muon",
        "muon for the matrices inside the blocks and adamw for the rest, or adamw for all",
        choices=("adamw", "muon"),
    )
    lr: float = option(0.015, "peak learning rate of adamw", above=0)
    matrix_lr: float = option(
        0.03, "muon: peak learning rate of the matrices (update scaled by sqrt(max(1, rows/columns)))", above=0
    )
    weight_decay: float = option(0.1, "decoupled L2 on matrices and embeddings, times the learning rate", low=0)
    l1: float = option(0.0, "decoupled L1 on the same weights, times the learning rate (soft threshold)", low=0)
    beta1: float = option(0.9, "adamw: decay of the mean of gradients", low=0, below=1)
    beta2: float = option(0.95, "adamw: decay of the mean of squared gradients", low=0, below=1)
    eps: float = option(1e-8, "adamw: added to the denominator", above=0)
    momentum: float = option(0.95, "muon: Nesterov momentum", low=0, below=1)


@dataclass(frozen=True)
class ScheduleConfig(Options):
    """The learning rate as a function of the step."""

    name: str = option(
        "cosine",
        "after warm-up: cosine, linear, wsd (stable, then linear decay) or constant",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    warmup_steps: int | None = option(
        None, "steps of linear warm-up; null: a tenth of max_steps, at most 50", unit="steps", low=0
    )
    final_lr_ratio: float = option(0.0, "learning rate that the schedule falls towards, over its peak", low=0, high=1)
    decay_fraction: float = option(0.3, "wsd: share of all steps that the decay takes", low=0, high=1)


@dataclass(frozen=True)
class TrainConfig(Options):
    """The training loop."""

    max_steps: int = option(700, "optimizer updates in the whole run", unit="steps", low=1)
    batch_size: int = option(8, "sequences in one micro-batch on one device", unit="sequences", low=1)
    grad_accum_steps: int = option(1, "micro-batches in one update", low=1)
    grad_clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", low=0)
    eval_every: int = option(175, "updates between evaluations; the last step is always evaluated", unit="steps", low=1)
    eval_tokens: int | None = option(
        65536, "evaluate on the first so many tokens of the validation split; null: all", unit="tokens", low=1
    )
    eval_batch_size: int | None = option(None, "sequences at once in evaluation; null: batch_size", low=1)
    checkpoint_every: int | None = option(
        None, "updates between checkpoints; null: at each evaluation", unit="steps", low=1
    )
    keep_checkpoints: int = option(2, "newest checkpoints kept, besides the best", low=1)
    early_stop_patience: int | None = option(
        None, "stop after so many evaluations in a row without a better loss; null: never", low=1
    )
    log_every: int = option(10, "updates between lines of metrics", unit="steps", low=1)
    sample_prompt: str = option(
        "", "prompt of the text sampled at each evaluation; empty: start of a document", free_text=True, escapes=True
    )
    sample_tokens: int = option(100, "tokens sampled at each evaluation; 0: none", unit="tokens", low=0)
    precision: str = option(
        "auto",
        "auto: bf16 where the hardware multiplies it faster, fp16 on older GPUs, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    device: str = option("auto", "auto: cuda, else mps, else cpu; also cuda:1")
    compile: str = option(
        "auto", "torch.compile: auto uses it on CUDA, where it pays back", choices=("auto", "on", "off")
    )
    deterministic: bool = option(False, "refuse kernels whose result varies from run to run (CUDA)")

    def mistakes(self) -> list[Mistake]:
        return device_mistakes(self.device)


def device_mistakes(device: str) -> list[Mistake]:
    kind, _, index = device.partition(":")
    if kind in ("auto", "cpu", "mps") and not index and ":" not in device:
        return []
    if kind == "cuda" and (":" not in device or index.isdecimal()):
        return []
    return [Mistake("device", "is not one of auto, cpu, cuda, cuda:N, mps")]


@dataclass(frozen=True)
class WandbConfig(Options):
    """Weights & Biases; metrics.jsonl and loss.png are written in any case."""

    mode: str = option(
        "disabled", "disabled, offline (files in the run folder) or online", choices=("disabled", "offline", "online")
    )
    project: str = option("newleaf", "project that the run belongs to", free_text=True)


@dataclass(frozen=True)
class RunConfig(Options):
    """Everything `train.py` takes."""

    run_dir: str = option("", "folder of the run; empty: runs/<data>-<model>", free_text=True)
    resume: str = option(
        "auto",
        "auto: continue what is in run_dir; never: refuse a run_dir that holds checkpoints",
        choices=("auto", "never"),
    )
    seed: int = option(1337, "seed of initial weights, data order, dropout and samples", low=0, below=2**63)
    model: ModelConfig = group(ModelConfig, "shape of the decoder")  # noqa: RUF009
    tokenizer: TokenizerConfig = group(TokenizerConfig, "text to tokens")  # noqa: RUF009
    data: DataConfig = group(DataConfig, "corpus and its split")  # noqa: RUF009
    optimizer: OptimizerConfig = group(OptimizerConfig, "how gradients become updates")  # noqa: RUF009
    schedule: ScheduleConfig = group(ScheduleConfig, "learning rate over time")  # noqa: RUF009
    train: TrainConfig = group(TrainConfig, "training loop")  # noqa: RUF009
    wandb: WandbConfig = group(WandbConfig, "Weights & Biases")  # noqa: RUF009

    def mistakes(self) -> list[Mistake]:
        if (self.schedule.warmup_steps or 0) > self.train.max_steps:
            return [
                Mistake(
                    "schedule.warmup_steps",
                    f"is more than train.max_steps={self.train.max_steps}; lower it",
                )
            ]
        return []


@dataclass(frozen=True)
class SampleConfig(Options):
    """Everything `sample.py` takes."""

    checkpoint: str = option("", "a run folder, a checkpoint, or any gpt2, llama or qwen3 model folder", free_text=True)
    prompt: str = option("", "text to continue, verbatim; empty: the start of a document", free_text=True)
    prompt_file: str | None = option(
        None, "file with one prompt on each line, or JSONL with a `prompt` field", free_text=True
    )
    output: str | None = option(None, "JSONL file for prompts and samples, instead of standard output", free_text=True)
    max_new_tokens: int = option(200, "longest continuation", unit="tokens", low=1)
    num_samples: int = option(1, "continuations of each prompt", low=1)
    temperature: float = option(0.8, "divides the logits; 0: always the likeliest token", low=0)
    top_k: int | None = option(None, "sample only from the k likeliest tokens", low=1)
    top_p: float | None = option(None, "sample from the smallest set with this probability", above=0, high=1)
    min_p: float | None = option(
        None, "sample from tokens with this share of the likeliest's probability", low=0, high=1
    )
    repetition_penalty: float = option(1.0, "above 1: make tokens already in the text less likely (CTRL)", above=0)
    stop: tuple[str, ...] = option(
        (), "end before this text; repeat the option for several", free_text=True, escapes=True
    )
    seed: int = option(1337, "sample i of a seed is the same alone and in a batch", low=0, below=2**63)
    batch_size: int = option(32, "sequences decoded at once", unit="sequences", low=1)
    stream: bool = option(True, "print text while it is made (one sample of one prompt)")
    interactive: bool = option(False, "read prompts from the terminal, one a line")
    device: str = option("auto", "auto: cuda, else mps, else cpu; also cuda:1")
    precision: str = option("auto", "weights and arithmetic: auto, fp32 or bf16", choices=("auto", "fp32", "bf16"))

    def mistakes(self) -> list[Mistake]:
        found = device_mistakes(self.device)
        if not self.checkpoint:
            found.append(
                Mistake("checkpoint", "is missing; give a run or model folder, as checkpoint=runs/stdlib-mini")
            )
        if self.interactive:
            for name in ("prompt", "prompt_file", "output"):
                if getattr(self, name):
                    found.append(Mistake(name, "does not go with interactive=true"))
            if self.num_samples > 1:
                found.append(Mistake("num_samples", "does not go with interactive=true"))
        elif self.prompt and self.prompt_file:
            found.append(Mistake("prompt_file", "give prompt or prompt_file, not both"))
        if any(not text for text in self.stop):
            found.append(Mistake("stop", "an empty text would stop at once; leave the option away"))
        return found
