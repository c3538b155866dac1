"""`plan=true`: what a run would take, on this machine or on GPUs that are only named, without training.

One micro-batch is rehearsed on tensors without data (`rehearsal.py`), as the first of all processes, with DDP's or
FSDP's own code, whatever the size of the model and their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from gpt.config import RunConfig
from gpt.config.device import processes
from gpt.model.available import available_memory
from gpt.model.dialects import VOCAB_SIZES
from gpt.model.fused import operations_of
from gpt.model.gpus import find_gpu
from gpt.model.hardware import DTYPES, Hardware, choose_hardware, muon_dtype
from gpt.model.loss import logits_bytes
from gpt.model.process import resident_memory
from gpt.model.transformer import Decoder
from gpt.options import ConfigError, Mistake, UserError
from gpt.text.shards import Corpus, prepare
from gpt.text.vocabularies import build_tokenizer
from gpt.training.batch_size import usable
from gpt.training.checkpoints import TrainerState
from gpt.training.memory import GAPS, LIBRARIES, PREDICTABLE
from gpt.training.parallel.choice import copy_fits
from gpt.training.parallel.layouts import Layout
from gpt.training.parallel.strategies import Alone, Sharded, mesh_of
from gpt.training.plan import Plan, communication, parts_of
from gpt.training.rehearsal import Rehearsal, Share, fake_group, rehearse
from gpt.training.trainer import Trainer

# On a GPU: bytes of CUDA's context and cuBLAS's workspace, and what PyTorch's allocator holds in gaps, of all tensors.
# Measured on an H100: 0.8 GB, 1.0 GB with NCCL, and 8 to 12 %.
CUDA_CONTEXT, FRAGMENTS = 800 * 2**20, 0.1
DEEP = 8  # layers, up to which a model is rehearsed as it is
MOST_GPUS = 4096  # with which a run that does not fit is tried


class Planner:
    """Plans variants of one configuration; each is rehearsed once. Raises UserError."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.world = config, config.cluster.gpus
        self.process_memory = resident_memory() or 0  # bytes, before anything is rehearsed
        self.gpu = find_gpu(config.cluster.gpu) if config.cluster.gpu else None
        self.hardware = self.rehearsed_hardware()
        if self.gpu:  # which the hardware that rehearses does not know
            quick = self.gpu.precision == "bf16" and self.hardware.precision != "fp32"
            self.muon_dtype = torch.bfloat16 if quick else torch.float32
        else:
            self.muon_dtype = muon_dtype(self.hardware)
        self.tokenizer_size, self.corpus = vocabulary(config)
        self.model = self.empty_model(config)
        self.rehearsed: dict[Any, Rehearsal] = {}

    def rehearsed_hardware(self) -> Hardware:
        """The arithmetic of the run. PyTorch without CUDA rehearses on a CPU, but with a GPU's operations."""
        train = self.config.train
        if self.gpu is None:
            return choose_hardware(train.device, train.precision, self.config.model.n_embd, train.compile)
        precision = self.gpu.precision if train.precision == "auto" else train.precision
        return Hardware(torch.device("cpu"), "bf16" if precision == "fp16" else precision)  # as many bytes

    def empty_model(self, config: RunConfig) -> Decoder:
        """With shapes, without numbers."""
        with torch.device("meta"):
            return Decoder(config.model, self.tokenizer_size, only_planned=True)

    def plan(self, config: RunConfig, world: int, parallel: str = "") -> Plan:
        """`parallel`: instead of what `config` has."""
        parallel = parallel or self.parallel(config, world)
        found = self.rehearse(config, world, parallel)
        on_cpu = self.gpu is None and self.hardware.device.type == "cpu"
        tokens = config.train.micro_batch * config.model.context_length
        logits = logits_bytes(tokens, self.model.embed.num_embeddings, self.hardware.dtype)
        snapshot = found.weights + found.optimizer if on_cpu and config.train.async_save else 0
        outside = (self.process_memory + LIBRARIES, GAPS) if on_cpu else (CUDA_CONTEXT, FRAGMENTS)
        return Plan(
            config,
            self.gpu,
            parallel,
            world,
            self.model.parameter_count(),
            parts_of(found, logits, snapshot, outside),
            self.capacity(world),
            communication(config, self.model, world, parallel, self.hardware.dtype, self.muon_dtype),
            self.model.flops_per_token(),
        )

    def parallel(self, config: RunConfig, world: int) -> str:
        """As the run would choose."""
        if world == 1:
            return "alone"
        if config.parallel != "auto":
            return config.parallel
        return "ddp" if copy_fits(self.model, self.capacity(world)) else "fsdp"

    def capacity(self, world: int) -> int | None:
        if self.gpu:
            return self.gpu.memory
        available = available_memory(self.hardware.device)
        return available // world if available is not None and self.hardware.device.type == "cpu" else available

    def rehearse(self, config: RunConfig, world: int, parallel: str) -> Rehearsal:
        """Of a deep model on the straight line through two shallow ones."""
        layers = config.model.n_layer
        if layers <= DEEP:
            return self.rehearse_whole(config, world, parallel)
        few, more = (self.rehearse_whole(with_layers(config, n), world, parallel) for n in (DEEP // 2, DEEP))
        return along(few, more, (layers - DEEP // 2) / (DEEP // 2))

    def rehearse_whole(self, config: RunConfig, world: int, parallel: str) -> Rehearsal:
        train = config.train
        if parallel == "ddp":  # whose gradients stay in their buckets, as if another micro-batch had been before
            config = replace(config, train=replace(train, grad_accum_steps=max(2, train.grad_accum_steps)))
        key = (
            world, parallel, config.model.n_layer, train.micro_batch, min(config.train.grad_accum_steps, 2),
            train.activation_checkpointing, train.eval_batch_size,
        )  # fmt: skip
        if key not in self.rehearsed:
            trainer = Trainer.__new__(Trainer)  # with neither text nor numbers
            trainer.config, trainer.hardware, trainer.model = config, self.hardware, self.empty_model(config)
            trainer.state, trainer.corpus = TrainerState(), SimpleNamespace(train=None)  # type: ignore[assignment]
            with fake_group(world) as ranks, operations_of("cuda" if self.gpu else self.hardware.device.type):
                share: Share = partial(replica, world=world)
                if parallel == "fsdp":
                    share = partial(
                        Sharded,
                        ranks=ranks,
                        reduce_dtype=DTYPES[train.reduce_dtype],
                        mesh=mesh_of(ranks, self.hardware.device),
                        hardware=replace(self.hardware, compile=False),
                    )
                self.rehearsed[key] = rehearse(trainer, ranks, share, self.muon_dtype)
        return self.rehearsed[key]

    def nearest(self, config: RunConfig) -> Plan | None:
        """The settings nearest to `config` that fit: with the same global batch smaller micro-batches, then blocks
        computed again, then shards, then more GPUs. None where not even `MOST_GPUS` of those would do."""
        more = [2**n for n in range(MOST_GPUS.bit_length()) if 2**n > self.world]
        for world in [self.world, *(more if self.gpu else ())]:
            for parallel in ("alone",) if world == 1 else ("ddp", "fsdp"):
                if self.hopeless(config, world, parallel):
                    continue
                for others in self.splits(config, world):
                    if found := self.largest(others, world, parallel):
                        return found
        return None

    def hopeless(self, config: RunConfig, world: int, parallel: str) -> bool:
        """Whether there is no room even for what stays from step to step: AdamW's state and gradients are as large as
        the weights each, Muon's is half of AdamW's."""
        capacity, copies = self.capacity(world), 3.0 if config.optimizer.name == "muon" else 4.0
        size = copies * sum(p.nbytes for p in self.model.parameters()) / (world if parallel == "fsdp" else 1)
        return capacity is not None and size > usable(capacity)

    def splits(self, config: RunConfig, world: int) -> Iterator[list[RunConfig]]:
        """The same global batch for so many processes, in ever larger micro-batches, and then so with blocks that are
        computed again; where they cannot share it equally, one sequence for each."""
        train = config.train
        whole = train.micro_batch * train.grad_accum_steps * self.world
        own = whole // world if whole % world == 0 else 1
        batches = [batch for batch in range(1, min(own, train.micro_batch) + 1) if own % batch == 0]
        for again in sorted({train.activation_checkpointing, True}):
            changed = replace(train, activation_checkpointing=again)
            yield [
                replace(config, train=replace(changed, batch_size=batch, grad_accum_steps=own // batch))
                for batch in batches
            ]

    def largest(self, splits: Sequence[RunConfig], world: int, parallel: str) -> Plan | None:
        """Of splits that take ever more memory, the last that fits."""
        best, untried = None, list(splits)
        index = 0  # often none fits
        while untried:
            found = self.plan(untried[index], world, parallel)
            if found.fits:
                best, untried = found, untried[index + 1 :]
            else:
                untried = untried[:index]
            index = len(untried) // 2
        return best


def replica(model: Decoder, world: int) -> Alone:
    """A copy of one of `world` processes."""
    alone = Alone(model)
    alone.layout = Layout(0, world)
    return alone


def with_layers(config: RunConfig, count: int) -> RunConfig:
    return replace(config, model=replace(config.model, n_layer=count))


def along(one: Rehearsal, other: Rehearsal, way: float) -> Rehearsal:
    """The point on a straight line: `one` at 0, `other` at 1."""
    pairs = zip(astuple(one), astuple(other), strict=True)
    return Rehearsal(*(round(x + way * (y - x)) for x, y in pairs))


def vocabulary(config: RunConfig) -> tuple[int, Corpus | None]:
    """How many tokens the run's tokenizer has; of one that is made from the text, with the corpus."""
    kind, size = config.tokenizer.name, config.tokenizer.vocab_size
    if kind == "bpe" and size:
        return size, None
    if kind == "gpt2":  # whose vocabulary would be a download
        return VOCAB_SIZES["gpt2"], None
    if kind in ("byte", "huggingface"):
        return build_tokenizer(config.tokenizer).vocab_size, None
    corpus = prepare(config.data, config.tokenizer)
    return corpus.tokenizer.vocab_size, corpus


def plan(config: RunConfig) -> int:
    """Print the plan of a run. Returns the exit status. Raises UserError, also where the run cannot fit."""
    from gpt.training.plan_table import print_plan, remedy

    if config.train.batch_size == "auto":
        raise ConfigError([Mistake("train.batch_size", "a plan needs a number, as train.batch_size=8", "auto")])
    if config.init_from:
        raise UserError("plan=true: is for training from random weights; leave out init_from, and what adapts it")
    if processes() > 1:
        raise UserError("plan=true: is for one process; say how many there are to be with cluster.gpus")
    planner = Planner(config)
    if planner.hardware.device.type not in PREDICTABLE:
        raise UserError(
            f"plan=true: what a run takes on the device {planner.hardware.device} is not known; name GPUs with "
            "cluster.gpu, or give train.device=cpu"
        )
    found = planner.plan(config, config.cluster.gpus)
    print_plan(found, planner)
    if not found.fits:
        raise UserError(remedy(found, planner.nearest(config)))
    return 0
