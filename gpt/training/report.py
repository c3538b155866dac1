"""What a run tells people and files as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from gpt.config import RunConfig
from gpt.config.device import processes
from gpt.inference.console import printable
from gpt.inference.decode import Sample
from gpt.model.hardware import Hardware, peak_flops
from gpt.model.process import peak_memory
from gpt.model.transformer import Decoder
from gpt.signals import was_interrupted
from gpt.training.checkpoints import TrainerState
from gpt.training.curves import Curve, draw_curves, read_curves
from gpt.training.evaluation import Evaluation
from gpt.training.metrics import JsonLines, ProgressLine, duration, size
from gpt.training.wandb_run import Wandb

DRAW_EVERY_SECONDS = 10.0  # drawing takes a tenth of a second, the first time four
MOST_MEASUREMENTS = 5  # of the hardware's peak, in a session
SHOWN_SAMPLE = 240  # characters of a sample that the console shows


class Reporter:
    """The sinks of one session of a run, and its clock."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        state: TrainerState,
        model: Decoder,
        hardware: Hardware,
        tokens_per_sequence: float,
        reader_went_away: Callable[[], None],
        predicted_memory: int | None = None,
        under_way: bool = False,
    ) -> None:
        """`tokens_per_sequence`: the mean length of a training sequence, for speeds and counts of tokens;
        `reader_went_away` is called where nobody reads the console any more;
        `predicted_memory`: bytes at the peak, to tell next to those measured; `under_way`: whether this session has
        trained before, and nothing refuses it any more. Raises UserError where Weights & Biases cannot begin."""
        self.config, self.run_dir, self.hardware = config, run_dir, hardware
        self.tokens_per_sequence, self.predicted_memory = tokens_per_sequence, predicted_memory
        self.wandb = Wandb(config, run_dir, state.wandb_id, under_way)  # first: it may refuse, and no file is cut yet
        state.wandb_id = self.wandb.id or state.wandb_id
        restored = state.step if state.step or state.best_step is not None else -1  # -1: not even step 0 was saved
        self.metrics = JsonLines(run_dir / "metrics.jsonl", restored, state.metrics_bytes)
        self.samples = JsonLines(run_dir / "samples.jsonl", restored, state.samples_bytes)
        self.curves: list[Curve] | None = None  # read from the file when first drawn, and kept up from then on
        self.state = state
        self.tokens_per_step = config.train.global_batch * tokens_per_sequence
        self.flops_per_token, self.peak = model.flops_per_token(), self.hardware_peak()
        self.n_measured = 1  # times that the peak was measured
        self.val_bits = state.best_bits_per_byte
        self.began, self.before = state.step, state.elapsed_seconds
        self.told = False  # how long it will take, and how much memory it takes
        self.line = ProgressLine(config.train.max_steps, state.step, reader_went_away)
        self.started = self.mark = time.perf_counter()
        self.mark_step = state.step
        self.drawn, self.undrawn = self.started, False  # when, and whether there has been an evaluation since

    @property
    def elapsed_seconds(self) -> float:
        """Of training and evaluation, over all sessions of the run."""
        return self.before + time.perf_counter() - self.started

    def hardware_peak(self) -> float | None:
        """Of all processes together, in FLOP/s."""
        peak = peak_flops(self.hardware)
        return peak and peak * processes()

    def measure_peak_again(self, reached: float) -> None:
        """At the first log, as the start may have been a busy moment, and a few times where training exceeds it."""
        if self.peak and (self.n_measured == 1 or (reached > self.peak and self.n_measured < MOST_MEASUREMENTS)):
            self.peak = max(self.peak, self.hardware_peak() or 0)
            self.n_measured += 1

    def log_training(self, step: int, loss: float, norm: float, scale: float) -> None:
        """Record one step: its loss in nats a token, gradient norm, and learning rate over its peak."""
        speed = (step - self.mark_step) * self.tokens_per_step / (time.perf_counter() - self.mark)
        self.measure_peak_again(speed * self.flops_per_token)
        self.mark, self.mark_step = time.perf_counter(), step
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
            held = "" if memory is None else f", {size(memory)} of memory at most so far"
            if held and self.predicted_memory:
                held += f" ({size(self.predicted_memory)} predicted)"
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

    def log_evaluation(self, step: int, evaluation: Evaluation, samples: list[Sample]) -> None:
        """Record an evaluation and the texts sampled with it. The curves are redrawn now, or soon."""
        self.val_bits = evaluation.bits_per_byte
        self.record(step, {"val/loss": evaluation.loss, "val/bits_per_byte": evaluation.bits_per_byte})
        self.line.say(f"step {step:>6}  val loss {evaluation.loss:.4f}  {self.val_bits:.3f} bits/byte", style="bold")
        for sample in samples:
            self.samples.write({"step": step, "prompt": sample.prompt, "text": sample.prompt + sample.text})
        for sample in samples[:1]:
            self.line.say(indented(sample.prompt + sample.text), style="dim")
        self.undrawn = True
        if time.perf_counter() - self.drawn > DRAW_EVERY_SECONDS:
            self.draw()

    def draw(self) -> None:
        if self.curves is None:
            self.curves = read_curves(self.run_dir / "metrics.jsonl")
        draw_curves(self.curves, self.run_dir / "loss.png", self.run_dir.name)
        self.drawn, self.undrawn = time.perf_counter(), False

    def record(self, step: int, values: dict[str, float]) -> None:
        tokens = round(self.state.sequences_trained * self.tokens_per_sequence)
        line = {"step": step, "elapsed_seconds": self.elapsed_seconds, "tokens": tokens}
        written = self.metrics.write(line | values)
        for curve in self.curves or ():
            curve.add(written)
        self.wandb.log(step, values)

    def settle(self) -> None:
        """Complete the state for a checkpoint, once every line up to it is on the disk: a power cut loses none."""
        self.state.elapsed_seconds = self.elapsed_seconds
        self.state.metrics_bytes, self.state.samples_bytes = self.metrics.sync(), self.samples.sync()

    def end_step(self, step: int, restart_clock: bool) -> None:
        """Count a step as done. `restart_clock` after other work than training, so that the speed leaves it out."""
        self.line.advance(step)
        if restart_clock:
            self.mark, self.mark_step = time.perf_counter(), step

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End all sinks. Where Ctrl-C is the reason, or comes meanwhile, at once: without a picture, as it may have
        come while matplotlib was being imported, which cannot be imported twice, and without waiting for Weights &
        Biases."""

        def end_wandb(kind: object, another: BaseException | None, trace: object) -> None:
            self.wandb.close(at_once=was_interrupted(another or error))

        with ExitStack() as sinks:  # each is closed, whatever the others raise
            sinks.push(end_wandb)
            for sink in (self.samples, self.metrics, self.line):
                sinks.callback(sink.close)
            if self.undrawn and not was_interrupted(error):
                self.draw()


class Silent:
    """What a process reports to that is not the one to write: nobody. As `Reporter`."""

    class Line:
        def say(self, text: str, style: str | None = None) -> None: ...

    def __init__(self) -> None:
        self.line = self.Line()

    def log_training(self, step: int, loss: float, norm: float, scale: float) -> None: ...

    def log_evaluation(self, step: int, evaluation: Evaluation, samples: list[Sample]) -> None: ...

    def settle(self) -> None: ...

    def end_step(self, step: int, restart_clock: bool) -> None: ...

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...


def indented(text: str) -> str:
    shown = printable(text[:SHOWN_SAMPLE]) + ("…" if len(text) > SHOWN_SAMPLE else "")
    return "\n".join("    " + line for line in shown.splitlines())
