"""What `export.py` does: a checkpoint → a plain Hugging Face folder, without the trainer's state.

The folder is written beside its place, flushed, and then renamed, so it is whole or not there.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from gpt.config import ExportConfig
from gpt.config.sampling import DEFAULT_NEW_TOKENS, DEFAULT_TEMPERATURE
from gpt.model.hardware import DTYPES
from gpt.model.huggingface import save_model
from gpt.model.opening import open_folder, read_checkpoint
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.files import check_writable_folder
from gpt.text.tokenizers import Tokenizer
from gpt.training.checkpoints import CheckpointFolder, TrainerState, publish, state_of
from gpt.training.model_card import model_card


def export(config: ExportConfig) -> int:
    """Run `export.py`. Returns the exit status. Raises UserError, and OSError where the machine cannot write."""
    output = Path(os.path.abspath(os.path.expanduser(config.output)))
    check_output(output, config.output)
    state, (_, model, tokenizer) = read_checkpoint(
        config.checkpoint, lambda folder: (state_of(folder), open_folder(folder))
    )
    dtype, max_shard_bytes = DTYPES[config.dtype], max(1, int(config.max_shard_gb * 1e9))
    check_range(model, dtype, config.dtype)

    def write(partial: Path) -> None:
        save_model(model, partial, tokenizer.end_of_text, dtype, max_shard_bytes, tokenizer.begin_of_text)
        tokenizer.save(partial)
        (partial / "generation_config.json").write_text(json.dumps(generation_config(tokenizer), indent=2) + "\n")
        card = model_card(output.name, model, tokenizer, config, state)
        (partial / "README.md").write_text(card, encoding="utf-8")

    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")  # another process may write the same output
    try:
        publish(output, write, partial)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise UserError(f"output={config.output} has been filled by something else meanwhile; name another") from None
    report(output, model, config, state)
    return 0


def check_output(output: Path, said: str) -> None:
    """Refuse an absolute path that is not new, or cannot be made; `said` is what the user wrote. Raises UserError."""
    try:
        if output.is_symlink():
            raise UserError(f"output={said} is a link; name a new folder")
        if output.exists() and not output.is_dir():
            raise UserError(f"output={said} is a file; name a new folder")
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"output={said} is not empty; name a new folder, or delete it first")
        if output.is_dir() and (output.samefile(Path.cwd()) or output.is_mount()):  # renaming cannot replace them
            raise UserError(f"output={said} is in use; name a new folder inside it, as output={output / 'my-model'}")
        parent = nearest_folder(output)
        check_writable_folder(parent, f"{output.name}.partial")
    except OSError as error:
        raise UserError(f"output={said} cannot be made ({error.strerror}); name another folder") from None
    for above in (parent, *parent.parents):
        if above.name == "checkpoints" and CheckpointFolder(above.parent).steps():
            raise UserError(f"output={said} is among the checkpoints of a run, which come and go; name another folder")


def nearest_folder(path: Path) -> Path:
    """The innermost parent that is there, links followed. Raises OSError where none can be looked at."""
    for parent in path.parents:
        try:
            parent.stat()  # unlike `exists`, does not pass over what cannot be looked at
        except FileNotFoundError:
            continue
        return parent.resolve()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def check_range(model: Decoder, dtype: torch.dtype, name: str) -> None:
    """Refuse a type in which a finite weight would become infinite."""
    largest = max(float(parameter.detach().abs().max()) for parameter in model.parameters())
    if largest > torch.finfo(dtype).max:
        raise UserError(
            f"dtype={name} holds numbers up to {torch.finfo(dtype).max:g}, and a weight is {largest:g}; "
            "use dtype=bf16 or fp32"
        )


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """How transformers' `generate` writes unless told otherwise: as sample.py."""
    end = tokenizer.end_of_text
    return {
        "bos_token_id": tokenizer.begin_of_text,
        "eos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "temperature": DEFAULT_TEMPERATURE,
        "max_new_tokens": DEFAULT_NEW_TOKENS,
    }


def report(output: Path, model: Decoder, config: ExportConfig, state: TrainerState | None) -> None:
    size = sum(file.stat().st_size for file in output.iterdir())
    trained = f", step {state.step:,}" if state else ""
    print(
        f"{output}: {model.config.dialect}, {model.parameter_count():,} parameters in {config.dtype}{trained}, "
        f"{size / 1e6:,.1f} MB",
        file=sys.stderr,
    )
    print(f'Load it: transformers.AutoModelForCausalLM.from_pretrained("{output}")', file=sys.stderr)
