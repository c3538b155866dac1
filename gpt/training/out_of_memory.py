"""What a run tells that ran out of memory: how much it took, and with which options the same run fits."""

from __future__ import annotations

import ctypes
import gc
import traceback
from contextlib import suppress

import torch

from gpt.config import RunConfig
from gpt.model.available import available_memory
from gpt.model.hardware import muon_dtype
from gpt.model.process import peak_memory
from gpt.model.transformer import Decoder
from gpt.options import ran_out_of_memory
from gpt.text.shards import Corpus
from gpt.training.batch_size import fit_with_less, largest_fit, needed_memory, own_share, smaller, usable
from gpt.training.memory import PREDICTABLE
from gpt.training.metrics import size
from gpt.training.optimizers import Optimizers
from gpt.training.trainer import Trainer


def explain(error: BaseException, trainer: Trainer) -> str:
    """What happened, and the way out. The trainer cannot go on after this: what it held besides weights is freed, for
    looking for a way takes memory too."""
    held = peak_memory(trainer.hardware.device)
    with suppress(Exception):  # which may be this one
        trainer.writer.wait()
    latest, at_most = trainer.checkpoints.latest(), "" if held is None else f": {size(held)} at most so far"
    if trainer.done and latest == trainer.checkpoints.at(trainer.state.step):
        return f"Out of memory after the last step{at_most}. The run is complete: its last checkpoint is {latest}."
    if trainer.model.sharded:
        return f"Out of memory after step {trainer.state.step:,}{at_most}. {unmeasured(trainer)}"
    free(error, trainer)
    try:
        figures, way = find_way(trainer, held or 0)
    except Exception as another:
        if not ran_out_of_memory(another):
            raise
        figures, way = "", ""  # there was none left to look for one
    kept = f"The last checkpoint, {latest}, is intact" if latest else "There is no checkpoint yet"
    goes_on = (
        f": the same command with these options in place of its own {'continues' if latest else 'starts again'}"
        if way
        else ""
    )
    return (
        f"Out of memory after step {trainer.state.step:,}{at_most}{figures}. "
        f"{way or 'Only ' + smaller(trainer)}. {kept}{goes_on}."
    )


def find_way(trainer: Trainer, held: int) -> tuple[str, str]:
    """How much was estimated and available, in words, and the nearest options that fit; "" where none do.

    What the process `held` at most was there, though the system may not count as free what it gave back.
    """
    train, device = trainer.config.train, trainer.hardware.device
    available = available_memory(device)
    if device.type not in PREDICTABLE or available is None:
        return "", unmeasured(trainer)
    estimate = needed_memory(trainer, train.micro_batch, {})
    available = max(available, held)
    limit, now = usable(available), train.micro_batch  # which failed, even if its estimate fits
    fit = largest_fit(trainer, limit, below=now) or fit_with_less(trainer, limit, below=now + 1)
    way = f"{fit.options} keeps the same global batch and needs about {size(fit.needed)}" if fit else ""
    return f", {size(estimate)} estimated, {size(available)} available", way


def unmeasured(trainer: Trainer) -> str:
    """The next smaller split, where it cannot be known what one takes; "" where there is no more to try."""
    whole, now = own_share(trainer.config), trainer.config.train.micro_batch
    if now == 1:
        less = not trainer.config.train.activation_checkpointing
        return "train.activation_checkpointing=true needs less" if less else ""
    batch = max(batch for batch in range(1, now) if whole % batch == 0)
    return (
        f"train.batch_size={batch} train.grad_accum_steps={whole // batch} keeps the same global batch and needs less"
    )


def explain_building(config: RunConfig, corpus: Corpus) -> str:
    """The same of a run whose model could not even be built or loaded."""
    with torch.device("meta"):
        model = Decoder(config.model, corpus.tokenizer.vocab_size)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return (
        f"Out of memory while the model was made: its {model.parameter_count():,} weights alone take {size(weights)}, "
        "gradients and optimizer some more. Choose a smaller model."
    )


def free(error: BaseException, trainer: Trainer) -> None:
    """Give back what a step that failed has left."""
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)  # their variables are tensors
        found = found.__context__
    for parameter in trainer.model.parameters():
        parameter.grad = None
    trainer.optimizers = Optimizers(trainer.model, trainer.config.optimizer, muon_dtype(trainer.hardware))
    gc.collect()
    if trainer.hardware.device.type == "cuda":
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # `hardware.keep_freed_memory` has kept it
