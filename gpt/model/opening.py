"""A model with its tokenizer, from whatever a user calls it: what sampling, evaluation and export begin with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpt.model.adapters import find_base, open_model
from gpt.model.find import find_model
from gpt.model.peft_config import is_adapter
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.tokenizers import Tokenizer

T = TypeVar("T")

ATTEMPTS = 20
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
    return read_checkpoint(checkpoint, open_folder)


def read_checkpoint(checkpoint: str, read: Callable[[Path], T], first: Path | None = None) -> T:
    """What `read` makes of the model folder that a user means, all from one checkpoint, though a run may be writing
    others and deleting this one. Then `read` is called again with the folder that `checkpoint` means by then. It begins
    with `first`, where that is known.

    It has to read what must be there after what may be missing, so that a folder that vanishes shows. Raises UserError,
    and what `read` raises of a folder that is there.
    """
    for attempt in range(ATTEMPTS):
        folder = first if first and not attempt else followed(find_model(checkpoint))
        try:
            return read(folder)
        except (UserError, OSError):
            if folder.exists():
                raise
    raise UserError(
        f"checkpoint={checkpoint}: its checkpoints are deleted faster than they can be read; try again later, or give "
        "its run a higher train.keep_checkpoints or train.checkpoint_every"
    )


def followed(folder: Path) -> Path:
    """Where a link leads now, as `best` of a run, which will lead elsewhere soon."""
    while folder.is_symlink():
        folder = folder.parent / os.readlink(folder)
    return folder


def open_folder(folder: Path) -> tuple[Path, Decoder, Tokenizer]:
    """What `open_checkpoint` gives of a model folder. The weights come last."""
    if is_adapter(folder):  # which may name any model of this machine or the Hub
        print(f"{folder} adapts {find_base(folder)}", file=sys.stderr)
    tokenizer, model = Tokenizer.load(find_tokenizer(folder)), open_model(folder)
    if tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"checkpoint={folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{model.vocab_size}; they do not belong together"
        )
    return folder, model, tokenizer
