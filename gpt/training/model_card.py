"""The model card of an export: what the model is, what it was trained on, and the command that trained it.

Format: https://huggingface.co/docs/hub/model-cards (YAML front matter, then Markdown).
"""

from __future__ import annotations

from typing import Any

import yaml

from gpt.config import ExportConfig
from gpt.model.transformer import Decoder
from gpt.text.tokenizers import Tokenizer
from gpt.training.checkpoints import TrainerState
from gpt.training.command import train_command


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
