"""A model with its tokenizer, from whatever a user calls it: what sampling, evaluation and export begin with."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt.model.adapters import find_base, open_model
from gpt.model.find import find_model
from gpt.model.peft_config import is_adapter
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # one of them makes a folder a tokenizer


def find_tokenizer(folder: Path) -> Path:
    """The folder with a model folder's tokenizer: its own; of an adapter folder that has none, as PEFT's, its base.

    Raises UserError where the base is needed and cannot be opened.
    """
    has_own = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return find_base(folder) if is_adapter(folder) and not has_own else folder


def open_checkpoint(checkpoint: str) -> tuple[Path, Decoder, Tokenizer]:
    """The folder, the decoder in fp32 on the CPU, and the tokenizer of a run, a checkpoint, a model folder or a Hub id.

    Raises UserError where one of them is not there, not whole, or not of the other.
    """
    folder = find_model(checkpoint)
    if is_adapter(folder):  # which may name any model of this machine or the Hub
        print(f"{folder} adapts {find_base(folder)}", file=sys.stderr)
    tokenizer, model = Tokenizer.load(find_tokenizer(folder)), open_model(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"checkpoint={checkpoint}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.vocab_size}; they do not belong together"
        )
    return folder, model, tokenizer
