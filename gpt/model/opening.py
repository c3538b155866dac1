"""A model with its tokenizer, from whatever a user calls it: what sampling, evaluation and export begin with."""

from __future__ import annotations

from pathlib import Path

from gpt.model.adapters import open_model
from gpt.model.find import find_model
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.tokenizers import Tokenizer


def open_checkpoint(checkpoint: str) -> tuple[Path, Decoder, Tokenizer]:
    """The folder, the decoder in fp32 on the CPU, and the tokenizer of a run, a checkpoint, a model folder or a Hub id.

    Raises UserError where one of them is not there, not whole, or not of the other.
    """
    folder = find_model(checkpoint)
    tokenizer, model = Tokenizer.load(folder), open_model(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"checkpoint={checkpoint}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.vocab_size}; they do not belong together"
        )
    return folder, model, tokenizer
