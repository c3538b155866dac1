"""Options of `train.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt.config.cluster import ClusterConfig
from gpt.config.data import DataConfig, TokenizerConfig
from gpt.config.device import device_mistakes, processes
from gpt.config.model import ModelConfig
from gpt.options import Mistake, Options, group, option, to_dict

MOST_TOKENS = 2**24  # in a batch: their activations alone fill any device, with the smallest model
LORA_TARGETS = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")


@dataclass(frozen=True)
class OptimizerConfig(Options):
    """How gradients become updates."""

    name: str = option(
        "muon",
        "muon for the matrices inside the blocks and adamw for the rest, or adamw for all",
        choices=("adamw", "muon"),
    )
    lr: float = option(0.015, "peak learning rate of adamw (optimizer=muon: of all but the matrices)", above=0)
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
    max_epochs: float | None = option(
        None, "end after so many passes over the training data, where that comes before max_steps", above=0, high=1e6
    )
    batch_size: int | Literal["auto"] = option(
        8,
        "sequences in one micro-batch on one device; auto: as many as fit into the memory, and so many micro-batches "
        "that an update stays what it is without auto",
        unit="sequences",
        low=1,
    )
    grad_accum_steps: int = option(1, "micro-batches in one update", low=1)
    global_batch_size: int | None = option(
        None,
        "sequences in one update; null: batch_size * grad_accum_steps * processes; grad_accum_steps follows from it",
        unit="sequences",
        low=1,
    )
    grad_clip: float = option(1.0, "largest norm of the gradient; 0: no clipping", low=0)
    eval_every: int = option(175, "updates between evaluations; the last step is always evaluated", unit="steps", low=1)
    eval_tokens: int | None = option(
        65536, "evaluate on the first so many tokens of the validation split; null: all", unit="tokens", low=1
    )
    eval_batch_size: int | None = option(None, "sequences at once in evaluation; null: batch_size", low=1)
    checkpoint_every: int | None = option(
        None, "updates between checkpoints; null: at each evaluation", unit="steps", low=1
    )
    async_save: bool = option(
        True,
        "write checkpoints while training goes on, from a copy of the weights and the optimizer's state in memory; "
        "false: wait for each instead",
    )
    save: str = option(
        "auto",
        "parallel=fsdp: gathered, rank 0 collects a checkpoint in its memory and writes it; sharded, all processes "
        "write it together, and none holds it; auto: gathered where that fits",
        choices=("auto", "gathered", "sharded"),
    )
    keep_checkpoints: int = option(2, "newest checkpoints kept, besides the best", low=1)
    early_stop_patience: int | None = option(
        None, "stop after so many evaluations in a row without a better loss; null: never", low=1
    )
    log_every: int = option(10, "updates between lines of metrics", unit="steps", low=1)
    sample_prompt: str = option(
        "",
        "prompt of the text sampled at each evaluation; empty: the start of a document, of fewer than 100 documents a "
        "held-out line, of pairs a held-out prompt",
        free_text=True,
        escapes=True,
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
    activation_checkpointing: bool = option(
        False, "keep only the input of each block and compute the rest again in backward: less memory, more time"
    )
    on_nonfinite: str = option(
        "stop",
        "where the loss, its gradient or a weight is not finite: stop with the last checkpoint intact, or rollback to "
        "it and go on without that batch",
        choices=("stop", "rollback"),
    )
    max_rollbacks: int = option(3, "rollback: how often in a run, then stop", low=1)
    reduce_dtype: str = option(
        "fp32",
        "several processes: in which arithmetic gradients are summed; bf16 travels twice as fast",
        choices=("fp32", "bf16"),
    )
    deterministic: bool = option(False, "refuse kernels whose result varies from run to run (CUDA)")

    @property
    def micro_batch(self) -> int:
        """Sequences in one micro-batch. A run settles `auto` before it asks (`gpt/training/batch_size.py`)."""
        assert self.batch_size != "auto"
        return self.batch_size

    @property
    def global_batch(self) -> int:
        """Sequences in one update."""
        return self.global_batch_size or self.micro_batch * self.grad_accum_steps * processes()

    def mistakes(self) -> list[Mistake]:
        return device_mistakes(self.device) + self.batch_mistakes()

    def batch_mistakes(self) -> list[Mistake]:
        wanted, size, world = self.global_batch_size, self.batch_size, processes()
        if size == "auto":
            missing = "needs the number of sequences in one update; give train.global_batch_size=8"
            if wanted is not None and wanted % world:
                return [Mistake("global_batch_size", f"cannot be shared equally by {world} processes")]
            return [Mistake("batch_size", missing)] if wanted is None else []
        if wanted in (None, size * self.grad_accum_steps * world):
            return []
        shared = f" times {world} processes" if world > 1 else ""
        fitting = f"set grad_accum_steps={wanted // size // world}, or " if wanted % (size * world) == 0 else ""
        message = (
            f"is not batch_size={size} times grad_accum_steps={self.grad_accum_steps}{shared}; {fitting}use "
            "batch_size=auto"
        )
        return [Mistake("global_batch_size", message)]


@dataclass(frozen=True)
class LoRAConfig(Options):
    """Low-rank adapters (Hu et al. 2021): the base weights stay, and each targeted matrix learns a small correction."""

    rank: int = option(0, "rank of the correction of each matrix; 0: train every weight instead", low=0)
    alpha: float = option(16.0, "the correction is scaled by alpha / rank", above=0, high=1e6)
    targets: tuple[str, ...] = option(
        LORA_TARGETS, "matrices of each block that get one, of attention.qkv, attention.out, mlp.up, mlp.down"
    )

    def mistakes(self) -> list[Mistake]:
        found = []
        unknown = [name for name in self.targets if name not in LORA_TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            wrong = f"there is no {unknown[0]!r}" if unknown else "is empty" if not self.targets else "names one twice"
            found.append(Mistake("targets", f"{wrong}; choose from {', '.join(LORA_TARGETS)}"))
        if not self.rank:
            for name in ("alpha", "targets"):
                if getattr(self, name) != getattr(type(self), name):
                    found.append(Mistake(name, "does nothing without adapters; set lora.rank=8, or leave it out"))
        return found


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
    plan: bool = option(False, "print what the run would take, on the machines of cluster.*, and do not train")
    parallel: str = option(
        "auto",
        "how the processes of torchrun share a model: ddp, each has a copy; fsdp, each has a part of every weight, "
        "gradient and optimizer state; auto: ddp where a copy fits",
        choices=("auto", "ddp", "fsdp"),
    )
    seed: int = option(1337, "seed of initial weights, data order, dropout and samples", low=0, below=2**63)
    init_from: str = option(
        "",
        "weights to start from: gpt2, gpt2-medium, gpt2-large, gpt2-xl, any Hub id (ID@REVISION pins it), or a local "
        "run or model folder; empty: random ones",
        free_text=True,
    )
    model: ModelConfig = group(ModelConfig, "shape of the decoder")  # noqa: RUF009
    tokenizer: TokenizerConfig = group(TokenizerConfig, "text to tokens")  # noqa: RUF009
    data: DataConfig = group(DataConfig, "corpus and its split")  # noqa: RUF009
    lora: LoRAConfig = group(LoRAConfig, "low-rank adapters, for fine-tuning with init_from")  # noqa: RUF009
    optimizer: OptimizerConfig = group(OptimizerConfig, "how gradients become updates")  # noqa: RUF009
    schedule: ScheduleConfig = group(ScheduleConfig, "learning rate over time")  # noqa: RUF009
    train: TrainConfig = group(TrainConfig, "training loop")  # noqa: RUF009
    wandb: WandbConfig = group(WandbConfig, "Weights & Biases")  # noqa: RUF009
    cluster: ClusterConfig = group(ClusterConfig, "machines that plan=true counts on")  # noqa: RUF009

    def mistakes(self) -> list[Mistake]:
        found = []
        if (self.schedule.warmup_steps or 0) > self.train.max_steps:
            message = f"is more than train.max_steps={self.train.max_steps}; lower it"
            found.append(Mistake("schedule.warmup_steps", message))
        if not self.plan:
            usual = to_dict(ClusterConfig())
            changed = [name for name, value in to_dict(self.cluster).items() if value != usual[name]]
            message = "is for a plan; add plan=true, or leave it out"
            found += [Mistake(f"cluster.{name}", message) for name in changed]
        for name in ("batch_size", "eval_batch_size"):
            size = getattr(self.train, name)
            tokens = (size if isinstance(size, int) else 0) * self.model.context_length  # it may be auto, or null
            if tokens > MOST_TOKENS and self.model.context_length <= MOST_TOKENS:
                message = f"makes {tokens:,} tokens at once, which no device holds; use train.grad_accum_steps instead"
                found.append(Mistake(f"train.{name}", message))
        if self.lora.rank and not self.init_from:
            message = "adapters need trained weights to adapt; name them with init_from=…, or leave lora.rank at 0"
            found.append(Mistake("lora.rank", message))
        return found
