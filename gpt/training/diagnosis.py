"""Where a number that is not finite came from: the step is computed again, and every module and gradient watched.

Legend: B sequences in a micro-batch, T context length.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gpt.inference.console import printable
from gpt.text.batches import IGNORE
from gpt.text.tokenizers import Tokenizer
from gpt.training.finite import StepStart
from gpt.training.random_states import restore_random_states
from gpt.training.trainer import Trainer

REPORT = "nonfinite.jsonl"
SHOWN_TEXT = 200  # characters of the batch that the console shows


@dataclass(frozen=True)
class Diagnosis:
    """What a step looked like when it was computed again. `place` is "" where everything was finite then."""

    step: int
    first_sequence: int
    sequences: int
    place: str
    micro_batch: int  # 0 …
    rows: list[int]  # of that micro-batch, those whose loss is not finite, or all
    loss: float  # of the micro-batch, nats a token
    loss_scale: float
    texts: list[str]  # of those rows

    def sentence(self, report: Path) -> str:
        """For people."""
        where = f"first in {self.place}" if self.place else "computed again, every number of it was finite"
        batch = f"{self.first_sequence} to {self.first_sequence + self.sequences - 1}"
        scale = f", loss scale {self.loss_scale:g}" if self.loss_scale != 1 else ""
        text = printable(self.texts[0][:SHOWN_TEXT]) if self.texts else ""
        return (
            f"{where}; loss {self.loss:g}{scale}; training sequences {batch}, micro-batch {self.micro_batch}, rows "
            f"{', '.join(map(str, self.rows))}, the first of which reads {text!r} (all: {report})"
        )


def diagnose(trainer: Trainer, start: StepStart) -> Diagnosis:
    """Compute this process's share of a step again and find the first module whose output or gradient is not finite.

    The weights must be those that the step began with. Leaves gradients behind, and another random state.
    """
    restore_random_states(start.random, trainer.hardware.device)
    batches = trainer.feed.read(start.first_sequence)
    scale = trainer.scaler.get_scale() if trainer.scaler.is_enabled() else 1.0
    assert batches.micro_batches
    trainer.optimizers.zero_grad()
    for number, (inputs, targets) in enumerate(batches.micro_batches):  # noqa: B007
        loss, place = watched_loss(trainer, inputs, targets, scale / batches.n_tokens)
        if place:
            break
    rows = bad_rows(trainer, inputs, targets)
    texts = [row_text(trainer.corpus.tokenizer, inputs[row], targets[row]) for row in rows]
    return Diagnosis(
        start.step + 1,
        start.first_sequence,
        trainer.global_batch,
        place,
        number * trainer.ranks.world + trainer.ranks.rank,
        rows,
        loss,
        scale,
        texts,
    )


def write_report(diagnosis: Diagnosis, run_dir: Path) -> Path:
    """Append a diagnosis to the run's report."""
    path = run_dir / REPORT
    with path.open("a", encoding="utf-8") as file:
        values = asdict(diagnosis) | {"loss": f"{diagnosis.loss:g}"}  # nan is no number in JSON
        file.write(json.dumps(values, ensure_ascii=False) + "\n")
    return path


def watched_loss(trainer: Trainer, inputs: Tensor, targets: Tensor, scale: float) -> tuple[float, str]:
    """The mean loss of a micro-batch, and the first place that is not finite, forward and backward; "" for none.

    `scale`: of the summed loss, in backward.
    """
    device, model = trainer.hardware.device, trainer.model
    inputs, targets = inputs.to(device), targets.to(device)
    with watching(model) as found:
        with trainer.hardware.autocast():
            loss = model(inputs, targets)
        if not found and not loss.isfinite():
            found.append("the loss that the head gives")
        if not found:
            (loss * scale).backward()
    for name, parameter in model.named_parameters():
        if not found and parameter.grad is not None and not all_finite(parameter.grad):
            found.append(f"the gradient of {name}")
    return loss.item() / int((targets != IGNORE).sum()), found[0] if found else ""


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """While entered, collects the places that are not finite, in the order in which they are computed."""
    found: list[str] = []
    handles = []
    for name, parameter in model.named_parameters():
        if not all_finite(parameter.detach()):
            found.append(f"the weight {name}")
    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(watcher(name, found)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def watcher(name: str, found: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    """A forward hook that looks at a module's output, and at its gradient when that comes."""

    def note_gradient(gradient: Tensor) -> None:
        if not all_finite(gradient):
            found.append(f"the gradient of the output of {name}")

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if not all_finite(output.detach()):
            found.append(f"the output of {name}")
        if output.requires_grad:
            output.register_hook(note_gradient)

    return note


def all_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


@torch.no_grad()
def bad_rows(trainer: Trainer, inputs: Tensor, targets: Tensor) -> list[int]:
    """The rows of a micro-batch [B, T] whose own loss is not finite; all where there is none of these."""
    device, bad = trainer.hardware.device, []
    trainer.model.eval()
    for row in range(len(inputs)):
        with trainer.hardware.autocast():
            loss = trainer.model(inputs[row : row + 1].to(device), targets[row : row + 1].to(device))
        bad += [] if loss.isfinite() else [row]
    trainer.model.train()
    return bad or list(range(len(inputs)))


def row_text(tokenizer: Tokenizer, inputs: Tensor, targets: Tensor) -> str:
    """The text of one row [T], padding left out."""
    end = int((targets != IGNORE).nonzero().max()) + 1 if (targets != IGNORE).any() else len(inputs)
    return tokenizer.decode([*inputs[:end].tolist(), *targets[end - 1 : end].clamp(min=0).tolist()])
