"""What `export.py` does: a checkpoint → a plain Hugging Face folder, without the trainer's state.

The folder is written beside its place, flushed, and then renamed, so it is whole or not there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from gpt.config import ExportConfig
from gpt.model.hardware import DTYPES
from gpt.model.huggingface import save_model
from gpt.model.opening import open_checkpoint
from gpt.model.transformer import Decoder
from gpt.options import UserError
from gpt.text.tokenizers import Tokenizer
from gpt.training.checkpoints import STATE, TRAINER, TrainerState, flush, read_state
from gpt.training.model_card import model_card

TEMPERATURE = 0.8  # as sample.py's default


def export(config: ExportConfig) -> int:
    """Run `export.py`. Returns the exit status. Raises UserError."""
    output = Path(config.output).expanduser()
    check_output(output)
    folder, model, tokenizer = open_checkpoint(config.checkpoint)
    state = read_state(folder) if (folder / TRAINER / STATE).is_file() else None
    dtype = DTYPES[config.dtype]
    check_range(model, dtype, config.dtype)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_model(model, partial, tokenizer.end_of_text, dtype, max(1, int(config.max_shard_gb * 1e9)))
        tokenizer.save(partial)
        (partial / "generation_config.json").write_text(json.dumps(generation_config(tokenizer), indent=2) + "\n")
        card = model_card(output.name, model, tokenizer, config, state)
        (partial / "README.md").write_text(card, encoding="utf-8")
        flush(partial)
        if output.is_dir():
            output.rmdir()  # empty: checked above
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(output, model, config, state)
    return 0


def check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file; name a new folder")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output={output} is not empty; name a new folder, or delete it first")
    if output.is_symlink():
        raise UserError(f"output={output} is a link; name a new folder")


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
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "do_sample": True,
        "temperature": TEMPERATURE,
        "max_new_tokens": 200,
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
