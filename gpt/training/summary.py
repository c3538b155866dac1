"""What a run tells people at its start, a table of what will happen, and at its end."""

from __future__ import annotations

import shlex

from rich.console import Console

from gpt.inference.decode import Sample
from gpt.model.context import describe_change
from gpt.model.lora import trainable_parameter_count
from gpt.training.evaluation import compressors
from gpt.training.initial import initial_context
from gpt.training.memory import SMALL, Memory, surely_small
from gpt.training.metrics import duration, size
from gpt.training.report import indented
from gpt.training.samples import held_out_prompts
from gpt.training.trainer import Trainer


def console() -> Console:
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def print_start(trainer: Trainer, memory: Memory | None) -> None:
    """The table at the start of a run, on standard error."""
    config, corpus = trainer.config, trainer.corpus
    parameters = trainer.model.parameter_count()
    bytes_per_token = corpus.train.n_bytes / len(corpus.train)
    rows = {
        "run": str(trainer.run_dir),
        "corpus": f"{corpus.source}: {len(corpus.train):,} tokens to train on, {len(corpus.val):,} held out"
        + describe_split(trainer),
        "pairs": trainer.data.description.removeprefix("pairs: "),
        "tokenizer": f"{corpus.tokenizer.name}, {corpus.tokenizer.vocab_size:,} tokens of {bytes_per_token:.2f} bytes",
        "model": f"{config.model.dialect}, {parameters:,} parameters, context {config.model.context_length}",
        "start": describe_start(trainer),
        "optimizer": describe_optimizer(trainer),
        "training": describe_work(trainer, parameters),
        "hardware": trainer.hardware.describe(config.model.head_width),
        "saving": trainer.saving.description,
        "memory": describe_memory(memory) if memory else describe_small(trainer),
    }
    out = console()
    for name, value in rows.items():
        if value:
            out.print(f"{name:<10} {value}")


def describe_start(trainer: Trainer) -> str:
    """Where the weights come from; "" for random ones."""
    config = trainer.config
    if not config.init_from:
        return ""
    change = describe_change(initial_context(config), config.model.context_length, config.model.position_kind)
    parts = [f"weights of {config.init_from}", *([change] if change else [])]
    if config.lora.rank:
        trained = trainable_parameter_count(trainer.model)
        share = trained / trainer.model.parameter_count()
        parts.append(f"LoRA of rank {config.lora.rank} trains {trained:,} parameters ({100 * share:.2f} %)")
    return ", ".join(parts)


def describe_split(trainer: Trainer) -> str:
    """A word of warning where the held-out part is much larger or smaller than asked; else ""."""
    data, corpus = trainer.config.data, trainer.corpus
    share = corpus.val.n_characters / (corpus.train.n_characters + corpus.val.n_characters)  # as ends are cut
    if data.val_files or data.val_fraction / 2 <= share < 2 * data.val_fraction:
        return ""
    finer = "data.documents=blank_line splits finer, " if data.name == "text" and data.documents == "whole" else ""
    return (
        f" ({100 * share:.3g} % instead of {100 * data.val_fraction:.3g} %, as whole documents are held out: "
        f"{finer}data.val_files chooses them)"
    )


def describe_optimizer(trainer: Trainer) -> str:
    """Learning rates, their schedule, and what may end the run early."""
    optimizer, train = trainer.config.optimizer, trainer.config.train
    muon = optimizer.name == "muon" and len(trainer.optimizers.peaks) > 1
    rates = f"learning rate {optimizer.lr:g}" + (f", of matrices {optimizer.matrix_lr:g}" if muon else "")
    ends = [f"at most {train.max_epochs:g} epochs"] if train.max_epochs is not None else []
    if train.early_stop_patience is not None:
        ends.append(f"ends after {train.early_stop_patience} evaluations without a better loss")
    return ", ".join([f"{optimizer.name}, {rates}, {trainer.config.schedule.name} schedule", *ends])


def describe_work(trainer: Trainer, parameters: int) -> str:
    train = trainer.config.train
    sequences = train.global_batch
    per_step = sequences * trainer.data.tokens_per_sequence
    total, epochs = per_step * train.max_steps, sequences * train.max_steps / trainer.data.sequences_per_epoch
    return (
        f"{train.max_steps:,} steps of {per_step:,.0f} tokens = {total:,.0f} tokens: "
        f"{total / parameters:.1f} for each parameter, {epochs:.2f} epochs"
    )


def describe_small(trainer: Trainer) -> str:
    """What is known without a rehearsal; "" for nothing."""
    return f"less than {size(SMALL)} besides the process" if surely_small(trainer) else ""


def describe_memory(memory: Memory) -> str:
    """The peak that is predicted, and its parts."""
    parts = {
        "the process": memory.process + memory.allowance,
        "weights": memory.weights,
        "optimizer": memory.optimizer,
        "gradients and activations" if memory.step >= memory.evaluation else "evaluation": memory.working,
        "a checkpoint being written": memory.snapshot,
    }
    listed = ", ".join(f"{name} {size(part)}" for name, part in parts.items() if part)
    warning = ""
    if memory.exceeds and memory.available is not None:  # estimates err, so it may fit, and is not refused
        warning = (
            f". WARNING: only {size(memory.available)} are available, so the run may be killed or fail; "
            "train.batch_size=auto takes what fits"
        )
    return f"about {size(memory.peak)} at the peak: {listed}{warning}"


def print_summary(trainer: Trainer, samples: list[Sample]) -> None:
    """Where the run ended, next to general compressors on the same text or to the model that it started from; `samples`
    are what the best checkpoint writes with the seeds of the base's."""
    config, state, corpus, out = trainer.config, trainer.state, trainer.corpus, console()
    if state.best_loss is None:
        return
    out.print(
        f"{state.step:,} steps in {duration(state.elapsed_seconds)}. Best validation loss {state.best_loss:.4f} "
        f"nats/token, {state.best_bits_per_byte:.3f} bits/byte, at step {state.best_step:,}."
    )
    others = compressors(corpus.val, corpus.tokenizer, config.train.eval_tokens)
    if others:
        out.print(
            "The same text compressed: " + ", ".join(f"{name} {bits:.3f} bits/byte" for name, bits in others.items())
        )
    if state.base:
        print_comparison(trainer, samples)
    out.print(f"Sample: python sample.py {shlex.quote(f'checkpoint={trainer.run_dir}')} prompt={example(trainer)}")


def example(trainer: Trainer) -> str:
    """A prompt for the shell, of the form that the model knows."""
    prompt = held_out_prompts(trainer.corpus, 1)[0]
    text = prompt if isinstance(prompt, str) else trainer.corpus.tokenizer.decode(prompt)
    if not text:
        return "'…'"
    if "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    return "$'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t") + "'"


def print_comparison(trainer: Trainer, samples: list[Sample]) -> None:
    """Before and after fine-tuning, on the same held-out text and with the same seeds."""
    state, out = trainer.state, console()
    base = state.base
    out.print(
        f"Held-out text: {base['bits_per_byte']:.3f} bits/byte with {trainer.config.init_from}, "
        f"{state.best_bits_per_byte:.3f} now."
    )
    if state.best_step == 0:
        out.print("No checkpoint beat the initial model, so the best one is its copy; try another optimizer.lr.")
    for number, (before, after) in enumerate(zip(base["samples"], samples, strict=False)):
        now = after.prompt + after.text
        out.print(f"Sample {number}, before:\n{indented(before)}\nSample {number}, after:\n{indented(now)}")
