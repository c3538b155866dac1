"""Adapter folders in PEFT's standard format: what LoRA has learned, without the model that it was learned on.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. `peft.PeftModel.from_pretrained` and transformers'
`from_pretrained` take what is written here, and what they save is read here. Nothing is unpickled.

Where we keep one matrix and the dialect keeps several (queries, keys and values; gate and up), each of those gets an
equal copy of A and its own rows of B, which is the same function. Back, equal copies become one A again; those that
differ are stacked, with B in blocks: queries and values alone give A = [A_q; A_v], B = [B_q 0; 0 0; 0 B_v].

Legend: r rank, A [r, in], B [out, r].
Source: PEFT's `save_and_load.py` (the names of tensors).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.config import LORA_TARGETS, ModelConfig
from gpt.model.checksums import checked_weights
from gpt.model.context import adapt
from gpt.model.dialects import Entry, tensor_table
from gpt.model.find import find_model
from gpt.model.huggingface import CONFIG_FILE, load_model, read_config
from gpt.model.lora import adapters_of, add_adapter, merge_adapters
from gpt.model.peft_config import (
    ADAPTER_CONFIG,
    AdapterConfig,
    base_of,
    is_adapter,
    read_adapter_config,
    write_adapter_config,
)
from gpt.model.tensor_files import compare, list_safetensors, read_object, read_safetensor, write_safetensors
from gpt.model.transformer import Decoder
from gpt.options import UserError

ADAPTER_WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # of PEFT's wrapper around the model
BASE_FACTS = "adapter_base.json"  # not in adapter_config.json: PEFT warns of keys that it does not know
FINGERPRINT, CONTEXT = "fingerprint", "context_length"
BASE = "base"  # the folder of a run that keeps what its adapters adapt
SAMPLES = 1024  # about so many numbers of each tensor go into a fingerprint; all of a smaller one


def open_model(folder: Path) -> Decoder:
    """The decoder in a folder, in fp32 on the CPU; that of an adapter folder is its base with the adapters merged.

    Raises UserError where either folder is not whole, the weights are not what their checksums say, or the base is not
    there or not the one that was adapted.
    """
    with checked_weights(folder):
        if is_adapter(folder):
            model = load_model(find_base(folder))
            config = adapted_config(folder, model.config)  # what may be missing comes before the weights, which may not
            load_adapters(model, folder)
            merge_adapters(model)
            adapt(model, config)
        else:
            model = load_model(folder)
    for name, parameter in model.named_parameters():
        if not torch.stack(torch.aminmax(parameter)).isfinite().all():  # of `parameter.isfinite()` there are copies
            raise UserError(f"{folder}: the weights are damaged: {name} holds what is no finite number")
    return model


def read_model_config(folder: Path) -> tuple[ModelConfig, int]:
    """The configuration and vocabulary size of the decoder that `open_model` gives. Raises UserError."""
    if not is_adapter(folder):
        return read_config(folder)
    config, vocab_size = read_config(find_base(folder))
    return adapted_config(folder, config), vocab_size


def adapted_config(folder: Path, base: ModelConfig) -> ModelConfig:
    """The base's configuration with the context length that the adapters were trained at, where the folder knows it."""
    context = read_base_facts(folder).get(CONTEXT)
    if not isinstance(context, int) or context < 1:
        return base
    return replace(base, context_length=min(context, base.context_length))


def base_in_run(folder: Path) -> Path | None:
    """The base that the run of a checkpoint keeps; None for any other folder."""
    place = folder.resolve()
    kept = place.parent.parent / BASE
    is_checkpoint = place.parent.name == "checkpoints" and (place / BASE_FACTS).is_file()
    return kept if is_checkpoint and (kept / CONFIG_FILE).is_file() else None


def find_base(folder: Path) -> Path:
    """The model folder that an adapter folder's base means: that which its run keeps, else what it names. Raises
    UserError."""
    if kept := base_in_run(folder):
        return kept
    base = base_of(folder)
    remedy = f"if the base is elsewhere, edit base_model_name_or_path in {folder / ADAPTER_CONFIG}"
    try:
        found = find_model(base, "base_model_name_or_path")
    except UserError as error:
        raise UserError(f"{folder} adapts {base}, which cannot be opened; {remedy}\n  {error}") from None
    if is_adapter(found):
        raise UserError(
            f"{folder} adapts {base}, which is itself an adapter folder; export that one first, or {remedy}"
        )
    return found


def save_adapters(model: Decoder, folder: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` (fp32) into an existing folder.

    `base` is where the model's own weights come from: a path, a Hub id or ID@REVISION. Raises UserError where the
    adapters differ in rank or alpha, as those that were stacked on reading may.
    """
    adapters = adapters_of(model)
    kinds = {(adapter.rank, adapter.alpha) for adapter in adapters.values()}
    if len(kinds) > 1:
        raise UserError(f"adapters of {len(kinds)} different ranks or alphas fit no one folder; merge them instead")
    ((rank, alpha),) = kinds
    entries = [entry for entry in adapter_table(model) if entry.ours in adapters]
    tensors = {}
    for entry in entries:
        adapter = adapters[entry.ours]
        for name, factor in zip(factor_names(entry), (adapter.lora_a, adapter.lora_b[entry.rows]), strict=True):
            tensors[name] = factor.detach().to("cpu", torch.float32, copy=True)  # else equal A's would share memory
    targets = list(dict.fromkeys(map(target_module, entries)))
    write_adapter_config(folder, AdapterConfig(base, rank, alpha), targets, any(e.transposed for e in entries))
    write_safetensors(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    facts = {FINGERPRINT: base_fingerprint(model), CONTEXT: model.config.context_length}
    (folder / BASE_FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


@torch.no_grad()
def load_adapters(model: Decoder, folder: Path) -> None:
    """Copy a folder's adapters into a model, bit for bit.

    A plain model gets the adapters that the folder has and is frozen apart from them; a model that has adapters must
    have the same ones. Raises UserError where the folder cannot be represented, does not fit the model, or was
    trained on other weights.
    """
    config = read_adapter_config(folder)
    factors = read_factors(model, folder, config.rank)
    adapters = adapters_of(model)
    present = {name: (adapter.rank, adapter.alpha) for name, adapter in adapters.items()}
    stacks = {name: len(a) // config.rank for name, (a, _) in factors.items()}
    wanted = {name: (stack * config.rank, stack * config.alpha) for name, stack in stacks.items()}
    if present and present != wanted:
        raise UserError(f"{folder} holds adapters of other matrices, ranks or alphas than the model has")
    if not present:
        model.requires_grad_(False)
        adapters = {name: add_adapter(model, name, rank, alpha) for name, (rank, alpha) in wanted.items()}
    for name, (a, b) in factors.items():
        adapters[name].lora_a.copy_(a)
        adapters[name].lora_b.copy_(b)


def read_factors(model: Decoder, folder: Path, rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each of our matrices that a folder adapts, by its name.

    Raises UserError that lists every tensor that is missing, unknown, of the wrong shape or of no floating type, or
    where the folder was trained on other weights than the model's.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        pickled = (folder / PICKLED_WEIGHTS).is_file()
        why = f"{PICKLED_WEIGHTS} is a pickle, which could run code; save it with PEFT as safetensors"
        raise UserError(f"{folder} has no {ADAPTER_WEIGHTS}: {why if pickled else 'it is not a whole adapter folder'}")
    entries = fitting_entries(path, model, rank)
    if read_base_facts(folder).get(FINGERPRINT) not in (None, base_fingerprint(model)):  # None: a stranger's folder
        kept = base_in_run(folder)
        named = "" if kept else f", or name it as base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        raise UserError(
            f"{folder} was trained on other weights than the base has now: was {kept or 'it'} trained further, or "
            f"replaced? Put the one of then in its place{named}"
        )
    parts: dict[str, list[tuple[slice, Tensor, Tensor]]] = defaultdict(list)
    for entry in entries:
        a, b = (read_safetensor(path, name) for name in factor_names(entry))
        parts[entry.ours].append((entry.rows, a, b))
    return {name: fused(found, len(model.get_parameter(f"{name}.weight"))) for name, found in parts.items()}


def fitting_entries(path: Path, model: Decoder, rank: int) -> list[Entry]:
    """The matrices that a file adapts, in every block alike. Raises UserError listing the tensors that do not fit."""
    stored, table = list_safetensors(path), list(adapter_table(model))
    targets = {target_module(entry) for entry in table if not stored.keys().isdisjoint(factor_names(entry))}
    entries = [entry for entry in table if target_module(entry) in targets]
    expected: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        out, columns = entry.shape[::-1] if entry.transposed else entry.shape
        expected |= zip(factor_names(entry), ((rank, columns), (out, rank)), strict=True)
    wrong = compare(expected, stored)
    if wrong or not entries:
        listed = "".join(f"\n  {line}" for line in wrong or ["it holds no tensor"])
        raise UserError(f"{path} does not fit its {ADAPTER_CONFIG} and the base:{listed}")
    return entries


def fused(parts: Sequence[tuple[slice, Tensor, Tensor]], out: int) -> tuple[Tensor, Tensor]:
    """A and B of one matrix of `out` rows from those of its parts (rows, A, B); rows of no part are not corrected."""
    factors = [a for _, a, _ in parts]
    shared = all(torch.equal(a, factors[0]) for a in factors)
    a = factors[0] if shared else torch.cat(factors)
    b = a.new_zeros(out, len(a))
    for index, (rows, _, part) in enumerate(parts):
        first = 0 if shared else index * part.shape[1]
        b[rows, first : first + part.shape[1]] = part
    return a, b


def adapter_table(model: Decoder) -> Iterable[Entry]:
    """Every matrix that may have an adapter: PEFT's name of its module, and the rows of our module that it is."""
    weights = tuple(f".{target}.weight" for target in LORA_TARGETS)
    for entry in tensor_table(model.config, model.vocab_size):
        if entry.ours.endswith(weights):
            theirs, ours = entry.theirs.removesuffix(".weight"), entry.ours.removesuffix(".weight")
            yield replace(entry, theirs=PREFIX + theirs, ours=ours)


def factor_names(entry: Entry) -> tuple[str, str]:
    return f"{entry.theirs}.lora_A.weight", f"{entry.theirs}.lora_B.weight"


def target_module(entry: Entry) -> str:
    """The end of a module's name that tells it from its neighbours in any block: attn.c_proj, self_attn.q_proj."""
    return ".".join(entry.theirs.split(".")[-2:])


def read_base_facts(folder: Path) -> dict[str, Any]:
    """What an adapter folder of ours knows of its base; {} for a stranger's. Raises UserError."""
    path = folder / BASE_FACTS
    return read_object(path) if path.is_file() else {}


def base_fingerprint(model: Decoder) -> str:
    """A digest, in hexadecimal, of a sample of every tensor of the base, whatever the adapters.

    Positions are left out: a run may cut or repeat their table to its own context length. The weights count in fp32; a
    model that was rounded to fewer bits is another.
    """
    digest = blake2b(digest_size=16)
    for entry in tensor_table(model.config, model.vocab_size):
        if entry.ours == "positions.weight":
            continue
        values = model.get_parameter(entry.ours).detach()[entry.rows].flatten()
        stride = max(1, len(values) // SAMPLES) | 1  # odd, so that it does not walk down a column
        sample = values[::stride].to("cpu", torch.float32).contiguous()
        digest.update(f"{entry.theirs} {len(values)}\n".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
