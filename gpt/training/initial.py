"""The start of fine-tuning: an earlier or released model gives a run its shape, its tokenizer and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt.config import ModelConfig, RunConfig, TokenizerConfig
from gpt.model.adapters import is_adapter, open_model, read_model_config
from gpt.model.context import adapt
from gpt.model.find import find_model
from gpt.model.lora import add_adapters
from gpt.model.opening import find_tokenizer
from gpt.model.transformer import Decoder
from gpt.options import ConfigError, Mistake, UserError, from_dict, to_dict
from gpt.text.tokenizers import Tokenizer
from gpt.training.base import hub_model, kept_base
from gpt.training.checkpoints import CheckpointFolder

LARGEST_CONTEXT = 1024  # tokens that a run takes of a longer context, unless model.context_length says otherwise
FREE = ("context_length", "dropout")  # options of the model that fine-tuning may change


def find_initial(init_from: str, run_dir: Path, adapted: bool) -> Path:
    """The model folder that a run starts from: with adapters the base that it keeps, else what `init_from` means, or
    its own last checkpoint where that is gone. Raises UserError."""
    if adapted and (kept := kept_base(init_from, run_dir)):
        return kept
    try:
        return find_model(init_from, "init_from")
    except UserError:
        latest = CheckpointFolder(run_dir).latest()
        if latest is None or is_adapter(latest):  # which is nothing without its base
            raise
        return latest


def check_tokenizer_kind(kind: str, folder: Path, init_from: str) -> None:
    """Refuse, before any text is read, a kind of tokenizer that cannot be the model's own."""
    try:
        own = Tokenizer.load(find_tokenizer(folder))
    except UserError:
        return  # a model without a tokenizer: the user's word counts
    if kind != "huggingface" and (kind != own.name or kind in ("bpe", "char")):  # which are made from the new text
        message = f"the weights of init_from={init_from} come with a tokenizer of their own; leave out the option"
        raise ConfigError([Mistake("tokenizer", message, kind)])


def initial_folder(config: RunConfig) -> Path:
    return find_initial(config.init_from, Path(config.run_dir).expanduser(), config.lora.rank > 0)


def adopt_model(values: dict[str, Any], given: set[str]) -> None:
    """Complete the options of a run by those of its initial model: shape, tokenizer, and the name of the run folder.

    `values` are nested as the options; `given` names those that the user set. Raises ConfigError where these contradict
    the model.
    """
    name = run_name(values["init_from"])
    if "run_dir" not in given:
        values["run_dir"] = f"runs/{values['data']['name']}-{name}"
    adapted = values["lora"]["rank"] != 0
    folder = find_initial(values["init_from"], Path(values["run_dir"]).expanduser(), adapted)
    theirs, _ = read_model_config(folder)
    wanted = {key: values["model"][key] for key in values["model"] if f"model.{key}" in given}
    if "context_length" not in wanted:
        wanted["context_length"] = min(theirs.context_length, LARGEST_CONTEXT)
    values["model"] = to_dict(theirs) | wanted
    found = contradictions(theirs, wanted, values["init_from"])
    if found:
        raise ConfigError(found)
    if any(option.split(".")[0] == "tokenizer" for option in given):
        check_tokenizer_kind(values["tokenizer"]["name"], folder, values["init_from"])
    else:
        values["tokenizer"] = to_dict(TokenizerConfig(name="huggingface", path=str(find_tokenizer(folder))))


def initial_context(config: RunConfig) -> int:
    """Context length, in tokens, of the model that a run starts from."""
    return read_model_config(initial_folder(config))[0].context_length


def run_name(init_from: str) -> str:
    """A short name of a model for a run folder: `gpt2`, or the run that a checkpoint belongs to."""
    hub = hub_model(init_from)
    parts = [part for part in Path(hub.repository if hub else init_from).parts if part not in ("/", ".", "..", "~")]
    while len(parts) > 1 and (parts[-1] in ("best", "checkpoints") or parts[-1].startswith("step-")):
        parts.pop()
    return parts[-1] if parts else "model"


def contradictions(theirs: ModelConfig, wanted: dict[str, Any], init_from: str) -> list[Mistake]:
    """The options in `wanted` that would make another model. Values of the wrong type are left for others to judge."""
    found = []
    for name, value in wanted.items():
        if name in FREE:
            continue
        try:
            asked = from_dict(ModelConfig, to_dict(theirs) | {name: value})
        except ConfigError as error:
            if any(mistake.option != name for mistake in error.mistakes):
                found.append(mismatch(name, value, theirs, init_from))
            continue
        if resolved(asked) != resolved(theirs):
            found.append(mismatch(name, value, theirs, init_from))
    return found


def mismatch(name: str, value: Any, theirs: ModelConfig, init_from: str) -> Mistake:
    own = resolved(theirs).get(name, getattr(theirs, name))
    message = f"the weights of init_from={init_from} have {own}; leave out the option"
    return Mistake(f"model.{name}", message, str(value))


def resolved(config: ModelConfig) -> dict[str, Any]:
    """The options with every automatic value spelled out."""
    return to_dict(config) | {
        "n_kv_head": config.kv_heads,
        "head_dim": config.head_width,
        "n_hidden": config.hidden_width,
        "positions": config.position_kind,
    }


def check_initial(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse a model or a tokenizer that is not that of the initial weights. Raises UserError with the remedy."""
    folder = initial_folder(config)
    theirs, vocab_size = read_model_config(folder)
    wanted = to_dict(config.model)
    if found := contradictions(theirs, wanted, config.init_from):
        raise ConfigError(found)
    if config.lora.rank and is_adapter(folder):
        raise UserError(
            f"init_from={config.init_from} is an adapter itself, and adapters on adapters have no folder format; merge "
            "it first: python export.py checkpoint=… output=…"
        )
    if config.lora.rank and config.model.context_length > theirs.context_length:
        raise UserError(
            f"model.context_length={config.model.context_length}: adapters cannot extend the {theirs.context_length} "
            "tokens of their base; lower it, or train every weight with lora.rank=0"
        )
    if config.lora.rank > theirs.n_embd:
        raise UserError(
            f"lora.rank={config.lora.rank} is more than the rank of the matrices, {theirs.n_embd}; a usual value is 8"
        )
    remedy = "leave out the tokenizer options, and its own tokenizer is used"
    if config.tokenizer.path and Path(config.tokenizer.path).expanduser() == find_tokenizer(folder):
        remedy = "the folder's own tokenizer is not that of its weights; give one that is, with tokenizer.path=…"
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer={config.tokenizer.name} has {tokenizer.vocab_size:,} tokens, the weights of "
            f"init_from={config.init_from} have rows for {vocab_size:,}; {remedy}"
        )
    try:
        own = Tokenizer.load(find_tokenizer(folder))
    except UserError:
        return  # a model without a tokenizer: the user's word counts
    if own.backend.get_vocab() != tokenizer.backend.get_vocab():
        raise UserError(
            f"tokenizer={config.tokenizer.name}: its tokens are not those that the weights of "
            f"init_from={config.init_from} were trained with; {remedy}"
        )


def build_model(config: RunConfig, tokenizer: Tokenizer) -> Decoder:
    """The decoder at the start of a run: random, or with the weights of `init_from`; with `lora`, adapters added."""
    if not config.init_from:
        return Decoder(config.model, tokenizer.vocab_size)
    try:
        model = open_model(initial_folder(config))
    except UserError as error:
        raise UserError(f"init_from={config.init_from} cannot be opened: {error}") from None
    adapt(model, config.model)
    if config.lora.rank:
        add_adapters(model, config.lora)
    return model
