"""What a run tells people and files: the table at its start, its figures as it goes, and the summary at its end."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from rich.console import Console

from gpt.config import RunConfig
from gpt.model.hardware import Hardware, peak_flops
from gpt.model.transformer import Decoder
from gpt.text.batches import windows_per_epoch
from gpt.text.shards import Corpus
from gpt.training.checkpoints import TrainerState
from gpt.training.evaluation import Evaluation, compressors
from gpt.training.metrics import JsonLines, ProgressLine, Wandb, draw_losses, duration, read_lines
from gpt.training.process import peak_memory

SHOWN_SAMPLE = 240  # characters of a sample that the console shows


class Reporter:
    """The sinks of one session of a run, and its clock."""

    def __init__(
        self, config: RunConfig, run_dir: Path, state: TrainerState, model: Decoder, hardware: Hardware
    ) -> None:
        self.config, self.run_dir, self.hardware = config, run_dir, hardware
        self.metrics = JsonLines(run_dir / "metrics.jsonl", state.step)
        self.samples = JsonLines(run_dir / "samples.jsonl", state.step)
        self.wandb = Wandb(config, run_dir, state.wandb_id)
        state.wandb_id = self.wandb.id or state.wandb_id
        self.state = state
        self.tokens_per_step = tokens_per_step(config)
        self.flops_per_token, self.peak = model.flops_per_token(), peak_flops(hardware)
        self.val_bits = state.best_bits_per_byte
        self.began, self.before = state.step, state.elapsed_seconds
        self.told = False  # how long it will take, and how much memory it takes
        self.line = ProgressLine(config.train.max_steps, state.step)
        self.started = self.mark = time.perf_counter()
        self.mark_step = state.step

    @property
    def elapsed_seconds(self) -> float:
        """Of training and evaluation, over all sessions of the run."""
        return self.before + time.perf_counter() - self.started

    def log_training(self, step: int, loss: float, norm: float, scale: float) -> None:
        """Record one step: its loss in nats a token, gradient norm, and learning rate over its peak."""
        now = time.perf_counter()
        speed = (step - self.mark_step) * self.tokens_per_step / (now - self.mark)
        self.mark, self.mark_step = now, step
        values = {
            "train/loss": loss,
            "train/lr": scale * self.config.optimizer.lr,
            "train/grad_norm": norm,
            "train/tokens_per_second": speed,
        }
        if self.peak:
            values["train/mfu"] = speed * self.flops_per_token / self.peak
        self.record(step, values)
        self.line.describe(step, self.figures(values), self.seconds_left(step))
        if not self.told and step < self.config.train.max_steps:
            self.told = True
            memory = peak_memory(self.hardware.device)
            held = "" if memory is None else f", {memory / 2**30:.1f} GiB of memory at most so far"
            self.line.say(f"about {duration(self.seconds_left(step))} to go{held}")

    def seconds_left(self, step: int) -> float:
        """At the pace of this session, evaluations included."""
        pace = (time.perf_counter() - self.started) / max(1, step - self.began)
        return pace * (self.config.train.max_steps - step)

    def figures(self, values: dict[str, float]) -> str:
        parts = [f"loss {values['train/loss']:.4f}"]
        if self.val_bits is not None:
            parts.append(f"val {self.val_bits:.3f} bits/byte")
        parts.append(f"{values['train/tokens_per_second']:,.0f} tokens/s")
        if "train/mfu" in values:
            parts.append(f"MFU {100 * values['train/mfu']:.0f} %")
        return "  ".join(parts)

    def log_evaluation(self, step: int, evaluation: Evaluation, sample: str | None) -> None:
        """Record an evaluation and the text sampled with it, and redraw the curves."""
        self.val_bits = evaluation.bits_per_byte
        self.record(step, {"val/loss": evaluation.loss, "val/bits_per_byte": evaluation.bits_per_byte})
        self.line.say(f"step {step:>6}  val loss {evaluation.loss:.4f}  {self.val_bits:.3f} bits/byte", style="bold")
        if sample is not None:
            self.samples.write({"step": step, "prompt": self.config.train.sample_prompt, "text": sample})
            self.line.say(indented(sample), style="dim")
        draw_losses(read_lines(self.run_dir / "metrics.jsonl"), self.run_dir / "loss.png", self.run_dir.name)

    def record(self, step: int, values: dict[str, float]) -> None:
        tokens = self.state.sequences * self.config.model.context_length
        line = {"step": step, "elapsed_seconds": self.elapsed_seconds, "tokens": tokens}
        self.metrics.write(line | values)
        self.wandb.log(step, values)

    def end_step(self, step: int, restart_clock: bool) -> None:
        """Count a step as done. `restart_clock` after other work than training, so that the speed leaves it out."""
        self.line.advance(step)
        if restart_clock:
            self.mark, self.mark_step = time.perf_counter(), step

    def close(self) -> None:
        for sink in (self.line, self.metrics, self.samples, self.wandb):
            sink.close()


def tokens_per_step(config: RunConfig) -> int:
    return config.train.batch_size * config.train.grad_accum_steps * config.model.context_length


def indented(text: str) -> str:
    shown = text[:SHOWN_SAMPLE] + ("…" if len(text) > SHOWN_SAMPLE else "")
    return "\n".join("    " + line for line in shown.splitlines())


def print_start(config: RunConfig, run_dir: Path, corpus: Corpus, model: Decoder, hardware: Hardware) -> None:
    """The table at the start of a run, on standard error."""
    parameters, n_tokens = model.parameter_count(), tokens_per_step(config) * config.train.max_steps
    epochs = n_tokens / config.model.context_length / windows_per_epoch(len(corpus.train), config.model.context_length)
    bytes_per_token = corpus.train.n_bytes / len(corpus.train)
    rows = {
        "run": str(run_dir),
        "corpus": f"{corpus.source}: {len(corpus.train):,} tokens to train on, {len(corpus.val):,} held out",
        "tokenizer": f"{corpus.tokenizer.name}, {corpus.tokenizer.vocab_size:,} tokens of {bytes_per_token:.2f} bytes",
        "model": f"{config.model.dialect}, {parameters:,} parameters, context {config.model.context_length}",
        "training": f"{config.train.max_steps:,} steps of {tokens_per_step(config):,} tokens = {n_tokens:,} tokens: "
        f"{n_tokens / parameters:.1f} for each parameter, {epochs:.2f} epochs",
        "hardware": hardware.describe(),
        "memory": f"{training_state_bytes(model, config) / 2**20:,.0f} MiB of weights, gradients and optimizer state, "
        "plus activations",
    }
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    for name, value in rows.items():
        console.print(f"{name:<10} {value}")


def training_state_bytes(model: Decoder, config: RunConfig) -> int:
    """fp32 weights, gradients and optimizer state, in bytes: AdamW keeps two numbers a weight, Muon one."""
    in_muon = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2) * (config.optimizer.name == "muon")
    return 4 * (4 * model.parameter_count() - in_muon)


def print_summary(config: RunConfig, run_dir: Path, state: TrainerState, corpus: Corpus) -> None:
    """Where the run ended, next to general compressors on the same text, and what to do next."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
    if state.best_loss is None:
        return
    console.print(
        f"{state.step:,} steps in {duration(state.elapsed_seconds)}. Best validation loss {state.best_loss:.4f} "
        f"nats/token, {state.best_bits_per_byte:.3f} bits/byte, at step {state.best_step:,}."
    )
    others = compressors(corpus.val, corpus.tokenizer, config.train.eval_tokens)
    if others:
        console.print(
            "The same text compressed: " + ", ".join(f"{name} {bits:.3f} bits/byte" for name, bits in others.items())
        )
    console.print(f"Sample: python sample.py {shlex.quote(f'checkpoint={run_dir}')} prompt='…'")
