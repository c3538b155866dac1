"""Model folders in Hugging Face's three dialects: the one reader and writer of a whole model's weights.

A folder holds `config.json` (the dialect's own keys) and `model.safetensors` (the dialect's own names, true
vocabulary size, no padding rows), so transformers' `AutoModelForCausalLM` loads what is written here. What it saves
and what was released is loaded here: whole or sharded, safetensors or `pytorch_model.bin`, in fp32 or half of it.
Nothing in a folder is executed. `dialects.py` has the names, `tensor_files.py` the file formats; folders of adapters
are the business of `adapters.py`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gpt.config import ModelConfig
from gpt.model.dialects import BASE_PREFIX, HEAD, Entry, from_huggingface_config, tensor_table, to_huggingface_config
from gpt.model.tensor_files import SAFETENSORS, Stored, compare, list_tensors, read_object, write_safetensors
from gpt.model.transformer import INIT_STD, Decoder
from gpt.options import UserError

CONFIG_FILE = "config.json"
SHARD_BYTES = 5 * 10**9
WEIGHTS_METADATA = {"format": "pt"}  # as transformers wants it
MAX_POSITIONS = 2**22  # no tensor bounds a rotary model's context, so a config could ask for any table
# Tables that follow from the configuration, which older versions of transformers saved with the weights.
BUFFERS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """The decoder's configuration and vocabulary size from a folder's `config.json`. Raises UserError."""
    path = folder / CONFIG_FILE
    try:
        return from_huggingface_config(read_object(path), path)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG_FILE}") from None


def load_model(folder: Path) -> Decoder:
    """The decoder in a folder, in fp32 on the CPU, at a peak of its own size and one tensor.

    Raises UserError where the folder is not whole.
    """
    config, vocab_size = read_config(folder)
    if config.position_kind == "rotary" and config.context_length > MAX_POSITIONS:
        limit = f"max_position_embeddings={config.context_length} is more than {MAX_POSITIONS}"
        raise UserError(f"{folder / CONFIG_FILE}: {limit}; write the context that you need there")
    weights = matching_tensors(folder, config, vocab_size)  # before anything of the claimed size is allocated
    with SkipInit():
        model = Decoder(config, vocab_size)
    copy_weights(model, weights)
    return model


class SkipInit(TorchFunctionMode):
    """Within it, modules leave their parameters as allocated, which takes neither time nor resident memory.

    The usual way, the meta device, imports 80 MB of Python at its first random number, which takes two seconds.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.zero_ or getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


def load_weights(model: Decoder, folder: Path) -> None:
    """Copy a folder's weights into a model of the same shape, one tensor at a time.

    Raises UserError that lists every tensor that is missing, unknown or of the wrong shape.
    """
    copy_weights(model, matching_tensors(folder, model.config, model.vocab_size))


def matching_tensors(folder: Path, config: ModelConfig, vocab_size: int) -> list[tuple[Entry, Stored]]:
    """Each tensor of the decoder and where the folder stores it, the embedding first.

    Raises UserError that lists every tensor that is missing, unknown, of the wrong shape or of no floating type.
    """
    stored = list_tensors(folder)
    where = f"{folder} does not fit its {CONFIG_FILE}"
    if config.n_layer > len(stored):  # the table below would grow with the number that config.json claims
        raise UserError(
            f"{where}: it has {len(stored)} tensors for {config.n_layer} layers; use the one that belongs to them"
        )
    entries = {entry.theirs: entry for entry in tensor_table(config, vocab_size)}
    found, twice = by_full_name(stored, config)
    if config.tie_embeddings and HEAD in found:  # some tools write the tied head; it must then equal the embedding
        embedding = next(iter(entries.values()))
        entries[HEAD] = Entry(HEAD, "head.weight", embedding.shape, embedding.rows)
    wrong = twice + compare({name: entry.shape for name, entry in entries.items()}, found)
    if wrong:
        raise UserError(f"{where}; use the one that belongs to these weights:\n  " + "\n  ".join(sorted(wrong)))
    return [(entry, found[name]) for name, entry in entries.items()]


def by_full_name(stored: Mapping[str, Stored], config: ModelConfig) -> tuple[dict[str, Stored], list[str]]:
    """Each stored weight by its full name, and a line for each that is there twice.

    Transformers' base models (GPT2Model, LlamaModel, as the released GPT-2) save names without the first part.
    """
    prefix = BASE_PREFIX[config.dialect]
    found: dict[str, Stored] = {}
    twice = []
    for name, tensor in stored.items():
        if BUFFERS.fullmatch(name.removeprefix(prefix)):
            continue
        full = name if name == HEAD else prefix + name.removeprefix(prefix)
        if full in found:
            twice.append(f"{name} is there twice, also as {found[full].name}")
        found[full] = tensor
    return found, twice


@torch.no_grad()
def copy_weights(model: Decoder, weights: Sequence[tuple[Entry, Stored]]) -> None:
    """Copy stored tensors into the model's parameters, in the parameters' own precision and on their device."""
    parameters = saved_tensors(model)
    # The largest first: while it is held twice, least of the model is filled, so it does not add to the peak.
    for entry, stored in sorted(weights, key=lambda pair: -math.prod(pair[0].shape)):
        tensor = stored.take()
        if entry.theirs == HEAD and model.config.tie_embeddings:
            target = parameters["embed.weight"][entry.rows]  # filled already, being as large and first in the table
            if not torch.equal(tensor.to(target), target):
                raise UserError(
                    f"{stored.file}: {HEAD} differs from the embedding, though tie_word_embeddings is true in "
                    f"{CONFIG_FILE}; set it to false there if the two are meant to differ"
                )
        else:
            parameters[entry.ours][entry.rows].copy_(tensor.T if entry.transposed else tensor)
        del tensor


def saved_tensors(model: Decoder) -> dict[str, Tensor]:
    """The model's parameters by our names, a sinusoidal table standing in for learned positions."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if model.config.position_kind == "sinusoidal":
        parameters["positions.weight"] = model.sinusoids
    return parameters


def save_model(
    model: Decoder,
    folder: Path,
    end_of_text: int,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = SHARD_BYTES,
    begin_of_text: int | None = None,
) -> None:
    """Write `config.json` and the weights in `dtype` into an existing folder, replacing safetensors of an earlier save.

    The ids before and after each text go into the former; without `begin_of_text`, `end_of_text` is both.
    Weights of more than `max_shard_bytes` go to several files and an index. What must be cast, transposed or moved from
    a GPU is held twice, one file's worth at a time.
    """
    remove_weights(folder)
    parameters = saved_tensors(model)
    files = planned_files(model.config, model.vocab_size, dtype, max_shard_bytes)
    for file, entries in files.items():
        tensors = {entry.theirs: stored_form(entry, parameters[entry.ours], dtype) for entry in entries}
        write_safetensors(tensors, folder / file, metadata=WEIGHTS_METADATA)
    write_description(folder, model, files, end_of_text, dtype, begin_of_text)


def remove_weights(folder: Path) -> None:
    """The safetensors of an earlier save."""
    for stale in (SAFETENSORS, f"{SAFETENSORS}.index.json", "model-?????-of-?????.safetensors"):
        for path in folder.glob(stale):
            path.unlink()


def planned_files(
    config: ModelConfig, vocab_size: int, dtype: torch.dtype, max_shard_bytes: int
) -> dict[str, list[Entry]]:
    """The files of a model's weights, and what is in each."""
    entries = {entry.theirs: entry for entry in tensor_table(config, vocab_size)}
    sizes = {name: math.prod(entry.shape) * dtype.itemsize for name, entry in entries.items()}
    return {file: [entries[name] for name in names] for file, names in files_of(sizes, max_shard_bytes).items()}


def stored_form(entry: Entry, parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """What a folder has of one of our parameters."""
    part = parameter.detach()[entry.rows].to("cpu", dtype)
    return (part.T if entry.transposed else part).contiguous()


def write_description(
    folder: Path,
    model: Decoder,
    files: Mapping[str, Sequence[Entry]],
    end_of_text: int,
    dtype: torch.dtype = torch.float32,
    begin_of_text: int | None = None,
) -> None:
    """Write what a model folder has besides its weights: `config.json`, and an index where several files hold them."""
    if len(files) > 1:
        places = {entry.theirs: file for file, entries in files.items() for entry in entries}
        total = sum(math.prod(entry.shape) for entries in files.values() for entry in entries) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / f"{SAFETENSORS}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    name = str(dtype).removeprefix("torch.")
    keys = to_huggingface_config(model.config, model.vocab_size, end_of_text, name, INIT_STD, begin_of_text)
    (folder / CONFIG_FILE).write_text(json.dumps(keys, indent=2) + "\n")


def files_of(sizes: Mapping[str, int], most: int, stem: str = "model") -> dict[str, list[str]]:
    """The files of a model and the tensors in each, in order: as many as fit in `most` bytes, but at least one. Of no
    tensors there is a file too.

    Not `split_torch_state_dict_into_shards` of huggingface_hub, which loads torch's distributed tensors: 0.4 s.
    """
    groups: list[list[str]] = [[]]
    room = most
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}
