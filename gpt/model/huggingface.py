"""Model folders in Hugging Face's three dialects: the one reader and writer of weights.

A folder holds `config.json` (the dialect's own keys) and `model.safetensors` (the dialect's own names, true
vocabulary size, no padding rows), so transformers' `AutoModelForCausalLM` loads what is written here and what it
saves is loaded here. Nothing in a folder is unpickled or executed.

Legend: C width, F hidden width, H query heads, K key/value heads, D head size, V vocabulary.
Sources: transformers' `modeling_gpt2.py`, `modeling_llama.py` and `modeling_qwen3.py` (names, layouts and keys).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt.config import ModelConfig
from gpt.model.transformer import INIT_STD, Decoder
from gpt.options import ConfigError, UserError, from_dict

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True)
class Entry:
    """One tensor of a folder, and the rows of our parameter that it is."""

    theirs: str
    ours: str
    rows: slice = field(default_factory=lambda: slice(None))
    transposed: bool = False  # GPT-2's Conv1D keeps [in, out] where nn.Linear keeps [out, in]


def tensor_table(config: ModelConfig, vocab_size: int) -> Iterator[Entry]:
    """Every tensor of a model folder in this dialect."""
    vocabulary = slice(0, vocab_size)
    if config.dialect == "gpt2":
        yield Entry("transformer.wte.weight", "embed.weight", vocabulary)
        yield Entry("transformer.wpe.weight", "positions.weight")
        for layer in range(config.n_layer):
            yield from gpt2_block(f"transformer.h.{layer}.", f"blocks.{layer}.")
        yield Entry("transformer.ln_f.weight", "norm.weight")
        yield Entry("transformer.ln_f.bias", "norm.bias")
    else:
        yield Entry("model.embed_tokens.weight", "embed.weight", vocabulary)
        for layer in range(config.n_layer):
            yield from llama_block(config, f"model.layers.{layer}.", f"blocks.{layer}.")
        yield Entry("model.norm.weight", "norm.weight")
    if not config.tie_embeddings:
        yield Entry("lm_head.weight", "head.weight", vocabulary)


def gpt2_block(theirs: str, ours: str) -> Iterator[Entry]:
    for their_norm, our_norm in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
        for part in ("weight", "bias"):
            yield Entry(f"{theirs}{their_norm}.{part}", f"{ours}{our_norm}.{part}")
    for their_layer, our_layer in (
        ("attn.c_attn", "attention.qkv"),
        ("attn.c_proj", "attention.out"),
        ("mlp.c_fc", "mlp.up"),
        ("mlp.c_proj", "mlp.down"),
    ):
        yield Entry(f"{theirs}{their_layer}.weight", f"{ours}{our_layer}.weight", transposed=True)
        yield Entry(f"{theirs}{their_layer}.bias", f"{ours}{our_layer}.bias")


def llama_block(config: ModelConfig, theirs: str, ours: str) -> Iterator[Entry]:
    queries, keys, hidden = config.n_head * config.head_width, config.kv_heads * config.head_width, config.hidden_width
    qkv = f"{ours}attention.qkv.weight"
    yield Entry(f"{theirs}input_layernorm.weight", f"{ours}attention_norm.weight")
    yield Entry(f"{theirs}self_attn.q_proj.weight", qkv, slice(0, queries))
    yield Entry(f"{theirs}self_attn.k_proj.weight", qkv, slice(queries, queries + keys))
    yield Entry(f"{theirs}self_attn.v_proj.weight", qkv, slice(queries + keys, queries + 2 * keys))
    yield Entry(f"{theirs}self_attn.o_proj.weight", f"{ours}attention.out.weight")
    if config.dialect == "qwen3":
        yield Entry(f"{theirs}self_attn.q_norm.weight", f"{ours}attention.q_norm.weight")
        yield Entry(f"{theirs}self_attn.k_norm.weight", f"{ours}attention.k_norm.weight")
    yield Entry(f"{theirs}post_attention_layernorm.weight", f"{ours}mlp_norm.weight")
    yield Entry(f"{theirs}mlp.gate_proj.weight", f"{ours}mlp.up.weight", slice(0, hidden))
    yield Entry(f"{theirs}mlp.up_proj.weight", f"{ours}mlp.up.weight", slice(hidden, 2 * hidden))
    yield Entry(f"{theirs}mlp.down_proj.weight", f"{ours}mlp.down.weight")


# Our option → the key of the dialect's config.json.
LLAMA_KEYS = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "n_embd": "hidden_size",
    "n_hidden": "intermediate_size",
    "context_length": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_embeddings": "tie_word_embeddings",
}
GPT2_KEYS = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "n_hidden": "n_inner",
    "context_length": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
}
KEYS = {"gpt2": GPT2_KEYS, "llama": LLAMA_KEYS, "qwen3": LLAMA_KEYS}
# What transformers assumes where a key is absent; keys that are neither here nor in the file are refused.
ABSENT: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "llama": {"num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "rope_theta": 1e4}
    | {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": False},
}


def to_huggingface_config(config: ModelConfig, vocab_size: int, end_of_text: int) -> dict[str, Any]:
    """The keys of `config.json`."""
    shape = {
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_kv_head": config.kv_heads,
        "head_dim": config.head_width,
        "n_embd": config.n_embd,
        "n_hidden": config.hidden_width,
        "context_length": config.context_length,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_embeddings": config.tie_embeddings,
    }
    keys = {
        "architectures": [ARCHITECTURES[config.dialect]],
        "model_type": config.dialect,
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "initializer_range": INIT_STD,
        "dtype": "float32",
    } | {theirs: shape[ours] for ours, theirs in KEYS[config.dialect].items()}
    if config.dialect == "gpt2":
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout)
        return keys | dropout | {"activation_function": "gelu_new"}
    keys |= {"hidden_act": "silu", "attention_bias": False, "attention_dropout": config.dropout}
    keys["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}  # transformers 5; 4: rope_theta
    return keys | ({"mlp_bias": False} if config.dialect == "llama" else {"use_sliding_window": False})


# What a dialect's decoder computes here. A folder whose key says otherwise is another architecture.
FIXED_KEYS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "llama": {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_scaling": (None,),
    },
    "qwen3": {
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "use_sliding_window": (False,),
        "rope_scaling": (None,),
    },
}


def from_huggingface_config(keys: Mapping[str, Any], where: Path) -> tuple[ModelConfig, int]:
    """The decoder's configuration and vocabulary size. Raises UserError naming each key that it cannot express."""
    dialect = keys.get("model_type")
    if dialect not in ARCHITECTURES:
        raise UserError(f"{where}: model_type={dialect!r} is not one of {', '.join(ARCHITECTURES)}")
    refused = [
        f"{name}={keys[name]!r} (only {' or '.join(map(repr, allowed))})"
        for name, allowed in FIXED_KEYS[dialect].items()
        if name in keys and keys[name] not in allowed
    ]
    rope = keys.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        refused.append(f"rope_parameters.rope_type={rope['rope_type']!r} (only 'default')")
    if refused:
        raise UserError(f"{where}: this architecture cannot be represented: " + "; ".join(refused))
    keys = ABSENT[dialect] | dict(keys) | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
    missing = [name for name in (*KEYS[dialect].values(), "vocab_size") if name not in keys]
    if missing:
        raise UserError(f"{where}: missing {', '.join(missing)}")
    if not isinstance(keys["vocab_size"], int) or keys["vocab_size"] < 1:
        raise UserError(f"{where}: vocab_size={keys['vocab_size']!r} is not a positive whole number")
    try:
        shape = {ours: keys[theirs] for ours, theirs in KEYS[dialect].items()}
        return from_dict(ModelConfig, {"dialect": dialect} | shape), keys["vocab_size"]
    except ConfigError as error:
        theirs = KEYS[dialect]
        listed = (replace(mistake, option=theirs.get(mistake.option, mistake.option)) for mistake in error.mistakes)
        raise UserError(f"{where}: " + "; ".join(map(str, listed))) from None


def save_model(model: Decoder, folder: Path, end_of_text: int) -> None:
    """Write `config.json` and `model.safetensors` (fp32) into an existing folder."""
    keys = to_huggingface_config(model.config, model.vocab_size, end_of_text)
    (folder / CONFIG_FILE).write_text(json.dumps(keys, indent=2) + "\n")
    parameters = saved_tensors(model)
    tensors = {}
    for entry in tensor_table(model.config, model.vocab_size):
        part = parameters[entry.ours].detach()[entry.rows]
        tensors[entry.theirs] = (part.T if entry.transposed else part).to("cpu", torch.float32).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def saved_tensors(model: Decoder) -> dict[str, Tensor]:
    """The model's parameters by our names, a sinusoidal table standing in for learned positions."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if model.config.position_kind == "sinusoidal":
        parameters["positions.weight"] = model.sinusoids
    return parameters


def read_config(folder: Path) -> tuple[ModelConfig, int]:
    """The decoder's configuration and vocabulary size from a folder's `config.json`. Raises UserError."""
    path = folder / CONFIG_FILE
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a model folder: it has no {CONFIG_FILE}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(keys, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return from_huggingface_config(keys, path)


def load_model(folder: Path) -> Decoder:
    """The decoder in a folder, in fp32 on the CPU. Raises UserError where the folder is not whole."""
    config, vocab_size = read_config(folder)
    with torch.device("meta"):
        model = Decoder(config, vocab_size)
    model.to_empty(device="cpu")  # this undoes the sharing of a tied head
    model.tie_and_tabulate()
    for table in (model.embed, model.head):
        table.weight.data[vocab_size:] = 0
    load_weights(model, folder)
    return model


@torch.no_grad()
def load_weights(model: Decoder, folder: Path) -> None:
    """Copy a folder's weights into a model of the same shape, one tensor at a time.

    Raises UserError that lists every tensor that is missing, unknown or of the wrong shape.
    """
    path = folder / WEIGHTS_FILE
    parameters = saved_tensors(model)
    entries = {entry.theirs: entry for entry in tensor_table(model.config, model.vocab_size)}
    try:
        with safe_open(path, framework="pt") as file:
            check_tensors(file, entries, parameters, path)
            for name, entry in entries.items():
                tensor = file.get_tensor(name)
                parameters[entry.ours][entry.rows].copy_(tensor.T if entry.transposed else tensor)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a model folder: it has no {WEIGHTS_FILE}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def check_tensors(file: Any, entries: Mapping[str, Entry], parameters: Mapping[str, Tensor], path: Path) -> None:
    present = set(file.keys())
    wrong = [f"{name} is missing" for name in entries.keys() - present]
    # A tied head is written out by some tools; it must then equal the embedding, and says nothing new.
    wrong += [f"{name} is unknown" for name in present - entries.keys() - {"lm_head.weight"}]
    for name in entries.keys() & present:
        entry = entries[name]
        expected = list(parameters[entry.ours][entry.rows].shape)
        expected = expected[::-1] if entry.transposed else expected
        if (found := file.get_slice(name).get_shape()) != expected:
            wrong.append(f"{name} has shape {found}, not {expected}")
    if wrong:
        raise UserError(f"{path} does not fit its {CONFIG_FILE}:\n  " + "\n  ".join(sorted(wrong)))


def find_model(path: str | Path) -> Path:
    """The model folder that a user's `checkpoint` means: a run's best, or the folder itself. Raises UserError."""
    given = Path(path).expanduser()
    for folder in (given / "checkpoints" / "best", given / "best", given):
        if (folder / "config.json").is_file():
            return folder
    if not given.exists():
        raise UserError(
            f"checkpoint={path}: there is no such folder; give a run (runs/…), a checkpoint or a model folder"
        )
    if not given.is_dir():
        raise UserError(f"checkpoint={path}: this is a file; give the folder of a run, a checkpoint or a model")
    if (given / "checkpoints").is_dir() or (given / "config.yaml").is_file():
        raise UserError(f"checkpoint={path}: this run has no checkpoint yet; train it further first")
    raise UserError(f"checkpoint={path}: this is no checkpoint: it has neither checkpoints/best nor config.json")
