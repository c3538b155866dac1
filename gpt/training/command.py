"""The command that a configuration is of: for whoever gets the model, and for whoever continues its run."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt.config import ModelConfig, RunConfig
from gpt.options import ConfigError, defaults, from_dict, to_dict, written
from gpt.training.identity import completed

# Options that say where and how a run was computed, not what came out.
LOCAL = ("run_dir", "resume", "data.prepared_dir", "data.workers", "train.device", "wandb.mode", "wandb.project")
SPELLED_OUT = ("optimizer",)  # groups whose files set more than a name: what equals our default may not be theirs
ESCAPED = ("data.template", "data.prompt", "data.completion", "train.sample_prompt")


def continuing_command(saved: Mapping[str, Any], run_dir: Path) -> str:
    """The command that continues a run in this folder, from the options that its checkpoint holds; "" where they are by
    another hand than ours."""
    try:
        config = to_dict(from_dict(RunConfig, completed(dict(saved), defaults(RunConfig))))
    except ConfigError:
        return ""
    return f"{train_command(config, ('run_dir', 'resume'))} {shlex.quote(f'run_dir={run_dir}')}"


def train_command(config: Mapping[str, Any], without: Collection[str] = LOCAL) -> str:
    """The options of a resolved configuration that differ from the defaults, as a command, but for some."""
    arguments = list(changed_options(config, to_dict(RunConfig())))
    if config.get("init_from"):
        # The model gives the shape and its tokenizer; every changed option of the experiment is spelled out.
        own = [f"model.{name}" for name in to_dict(ModelConfig()) if name not in ("context_length", "dropout")]
        if config.get("tokenizer", {}).get("name") == "huggingface":
            own += ["tokenizer", "tokenizer.path"]
        arguments = [(name, text) for name, text in arguments if name not in own]
        arguments.append(("experiment", "null"))
    words = [shlex.quote(f"{name}={text}") for name, text in arguments if name not in without]
    return " ".join(["python train.py", *words])


def changed_options(
    values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    """Dotted names and written values of what differs; `data=text` stands for data.name."""
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            yield from changed_options(value, default, f"{name}.")
        elif prefix + name in ("data.files", "data.val_files"):
            yield from ((prefix + name, file) for file in value)  # repeated, as one name may hold a comma
        elif value != default or (prefix[:-1] in SPELLED_OUT and values.get("name") != defaults["name"]):
            text = written(value)
            if prefix + name in ESCAPED:
                text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
            yield (prefix[:-1] if name == "name" else prefix + name), text
