"""The model card of an export: what the model is, what it was trained on, and the command that trained it.

Format: https://huggingface.co/docs/hub/model-cards (YAML front matter, then Markdown).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from gpt.config import ExportConfig, ModelConfig, RunConfig
from gpt.model.transformer import Decoder
from gpt.options import to_dict, written
from gpt.text.tokenizers import Tokenizer
from gpt.training.checkpoints import TrainerState

# Options that say where and how a run was computed, not what came out.
LOCAL = ("run_dir", "resume", "data.prepared_dir", "data.workers", "train.device", "wandb.mode", "wandb.project")
SPELLED_OUT = ("optimizer",)  # groups whose files set more than a name: what equals our default may not be theirs
ESCAPED = ("data.template", "data.prompt", "data.completion", "train.sample_prompt")


def model_card(
    name: str, model: Decoder, tokenizer: Tokenizer, config: ExportConfig, state: TrainerState | None
) -> str:
    """The text of README.md; without a trainer's state it says only what the weights say."""
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["newleaf"]}
    if state and state.base.get("hub"):
        front["base_model"] = state.base["hub"]
    rows = {
        "architecture": f"{model.config.dialect}, {model.config.n_layer} layers, {model.config.n_embd} wide",
        "parameters": f"{model.parameter_count():,} in {config.dtype}",
        "context": f"{model.config.context_length:,} tokens",
        "tokenizer": f"{tokenizer.name}, {tokenizer.vocab_size:,} tokens, fingerprint {tokenizer.fingerprint[:12]}",
    } | (training_facts(state) if state else {})
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        "| | |\n| --- | --- |\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items()),
    ]
    if state:
        parts.append(f"Trained with Newleaf by\n\n```\n{train_command(state.config)}\n```")
    parts.append(
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```'
    )
    return "\n\n".join(parts) + "\n"


def training_facts(state: TrainerState) -> dict[str, str]:
    facts = {
        "data": describe_data(state),
        "steps": f"{state.step:,}, of {state.sequences:,} sequences in all",
        "seed": str(state.config.get("seed")),
    }
    if state.config.get("init_from"):
        facts["started from"] = str(state.config["init_from"])
    if state.best_loss is not None and state.best_bits_per_byte is not None:
        at = "" if state.best_step == state.step else f" (the best of the run, at step {state.best_step:,})"
        facts["validation loss"] = f"{state.best_loss:.4f} nats/token, {state.best_bits_per_byte:.3f} bits/byte{at}"
    if state.base:
        before = f"{state.base['loss']:.4f} nats/token, {state.base['bits_per_byte']:.3f} bits/byte"
        facts["validation loss before fine-tuning"] = before
    return facts


def describe_data(state: TrainerState) -> str:
    """Kind of source, length and fingerprint of the training text."""
    length, _, fingerprint = str(state.identity.get("corpus", "unknown")).rpartition(" ")
    source = state.config.get("data", {}).get("name", "unknown source")
    return f"{source}, {length} to train on, fingerprint {fingerprint}"


def train_command(config: Mapping[str, Any]) -> str:
    """The options of a resolved configuration that differ from the defaults, as a command."""
    arguments = list(changed_options(config, to_dict(RunConfig())))
    if config.get("init_from"):
        # The model gives the shape and its tokenizer; every changed option of the experiment is spelled out.
        own = [f"model.{name}" for name in to_dict(ModelConfig()) if name not in ("context_length", "dropout")]
        if config.get("tokenizer", {}).get("name") == "huggingface":
            own += ["tokenizer", "tokenizer.path"]
        arguments = [(name, text) for name, text in arguments if name not in own]
        arguments.append(("experiment", "null"))
    words = [shlex.quote(f"{name}={text}") for name, text in arguments if name not in LOCAL]
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
