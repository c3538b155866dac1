"""Hugging Face's names for our decoder: the tensors and the config.json keys of the gpt2, llama and qwen3 dialects.

Pure tables and functions on dicts; `huggingface.py` reads and writes the files.

Legend: C width, F hidden width, H query heads, K key/value heads, D head size, T context, V vocabulary.
Sources: transformers' `modeling_*.py` (names and layouts), `configuration_*.py` (keys and what it assumes where one is
absent) and `modeling_rope_utils.py` (rotary scaling, in the spelling of transformers 4 and of 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gpt.config import ModelConfig
from gpt.options import ConfigError, Mistake, UserError, from_dict

ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
BASE_PREFIX = {"gpt2": "transformer.", "llama": "model.", "qwen3": "model."}  # a model saved without head lacks it
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Entry:
    """One tensor of a folder, and the rows of our parameter that it is."""

    theirs: str
    ours: str
    shape: tuple[int, ...]  # in the folder
    rows: slice = field(default_factory=lambda: slice(None))
    transposed: bool = False  # GPT-2's Conv1D keeps [in, out] where nn.Linear keeps [out, in]


def tensor_table(config: ModelConfig, vocab_size: int) -> Iterator[Entry]:
    """Every tensor of a model folder in this dialect, the embedding first."""
    gpt2, prefix, width = config.dialect == "gpt2", BASE_PREFIX[config.dialect], config.n_embd
    table, vocabulary = (vocab_size, width), slice(0, vocab_size)
    yield Entry(f"{prefix}{'wte' if gpt2 else 'embed_tokens'}.weight", "embed.weight", table, vocabulary)
    if gpt2:
        yield Entry("transformer.wpe.weight", "positions.weight", (config.context_length, width))
    for layer in range(config.n_layer):
        if gpt2:
            yield from gpt2_block(config, f"transformer.h.{layer}.", f"blocks.{layer}.")
        else:
            yield from llama_block(config, f"model.layers.{layer}.", f"blocks.{layer}.")
    if gpt2:
        yield from layer_norm(width, "transformer.ln_f", "norm")
    else:
        yield Entry("model.norm.weight", "norm.weight", (width,))
    if not config.tie_embeddings:
        yield Entry(HEAD, "head.weight", table, vocabulary)


def layer_norm(width: int, theirs: str, ours: str) -> Iterator[Entry]:
    for part in ("weight", "bias"):
        yield Entry(f"{theirs}.{part}", f"{ours}.{part}", (width,))


def gpt2_block(config: ModelConfig, theirs: str, ours: str) -> Iterator[Entry]:
    width, hidden = config.n_embd, config.hidden_width
    yield from layer_norm(width, f"{theirs}ln_1", f"{ours}attention_norm")
    yield from layer_norm(width, f"{theirs}ln_2", f"{ours}mlp_norm")
    for their_layer, our_layer, shape in (
        ("attn.c_attn", "attention.qkv", (width, 3 * width)),
        ("attn.c_proj", "attention.out", (width, width)),
        ("mlp.c_fc", "mlp.up", (width, hidden)),
        ("mlp.c_proj", "mlp.down", (hidden, width)),
    ):
        yield Entry(f"{theirs}{their_layer}.weight", f"{ours}{our_layer}.weight", shape, transposed=True)
        yield Entry(f"{theirs}{their_layer}.bias", f"{ours}{our_layer}.bias", shape[1:])


def llama_block(config: ModelConfig, theirs: str, ours: str) -> Iterator[Entry]:
    width, hidden, head = config.n_embd, config.hidden_width, config.head_width
    queries, keys = config.n_head * head, config.kv_heads * head
    yield Entry(f"{theirs}input_layernorm.weight", f"{ours}attention_norm.weight", (width,))
    start = 0
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        part = slice(start, start + rows)
        yield Entry(f"{theirs}self_attn.{name}.weight", f"{ours}attention.qkv.weight", (rows, width), part)
        start += rows
    yield Entry(f"{theirs}self_attn.o_proj.weight", f"{ours}attention.out.weight", (width, queries))
    if config.dialect == "qwen3":
        for name in ("q_norm", "k_norm"):
            yield Entry(f"{theirs}self_attn.{name}.weight", f"{ours}attention.{name}.weight", (head,))
    yield Entry(f"{theirs}post_attention_layernorm.weight", f"{ours}mlp_norm.weight", (width,))
    up = f"{ours}mlp.up.weight"
    yield Entry(f"{theirs}mlp.gate_proj.weight", up, (hidden, width), slice(0, hidden))
    yield Entry(f"{theirs}mlp.up_proj.weight", up, (hidden, width), slice(hidden, 2 * hidden))
    yield Entry(f"{theirs}mlp.down_proj.weight", f"{ours}mlp.down.weight", (width, hidden))


# Our option → the dialect's key, and what transformers assumes where config.json lacks it.
GPT2_KEYS: dict[str, tuple[str, Any]] = {
    "n_layer": ("n_layer", 12),
    "n_head": ("n_head", 12),
    "n_embd": ("n_embd", 768),
    "n_hidden": ("n_inner", None),
    "context_length": ("n_positions", 1024),
    "norm_eps": ("layer_norm_epsilon", 1e-5),
    "tie_embeddings": ("tie_word_embeddings", True),
}
LLAMA_KEYS: dict[str, tuple[str, Any]] = {
    "n_layer": ("num_hidden_layers", 32),
    "n_head": ("num_attention_heads", 32),
    "n_kv_head": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "n_embd": ("hidden_size", 4096),
    "n_hidden": ("intermediate_size", 11008),
    "context_length": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
}
QWEN3_KEYS = LLAMA_KEYS | {
    "n_kv_head": ("num_key_value_heads", 32),
    "head_dim": ("head_dim", 128),
    "n_hidden": ("intermediate_size", 22016),
    "context_length": ("max_position_embeddings", 32768),
}
KEYS = {"gpt2": GPT2_KEYS, "llama": LLAMA_KEYS, "qwen3": QWEN3_KEYS}
VOCAB_SIZES = {"gpt2": 50257, "llama": 32000, "qwen3": 151936}  # assumed where absent
# Other names by which transformers takes GPT-2's keys (`attribute_map`).
GPT2_ALIASES = {
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
}
# Our option → its key in `rope_parameters` (transformers 5) or `rope_scaling` (4), by kind of scaling.
LINEAR_KEYS = {"rope_factor": "factor"}
LLAMA3_KEYS = LINEAR_KEYS | {
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_context": "original_max_position_embeddings",
}
ROPE_KEYS: dict[str, dict[str, str]] = {"none": {}, "linear": LINEAR_KEYS, "llama3": LLAMA3_KEYS}

# What a dialect's decoder computes here. A folder whose key says otherwise is another architecture.
SHARED_FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "pruned_heads": ({}, None),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
}
ROTARY_FIXED_KEYS = SHARED_FIXED_KEYS | {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "partial_rotary_factor": (1, None),
}
FIXED_KEYS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": SHARED_FIXED_KEYS
    | {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
    },
    "llama": ROTARY_FIXED_KEYS | {"mlp_bias": (False,), "pretraining_tp": (1, None)},
    "qwen3": ROTARY_FIXED_KEYS | {"use_sliding_window": (False,)},
}


def to_huggingface_config(
    config: ModelConfig,
    vocab_size: int,
    end_of_text: int,
    dtype: str = "float32",
    init_std: float = 0.02,
    begin_of_text: int | None = None,
) -> dict[str, Any]:
    """The keys of `config.json`. `dtype` as torch names it: what the weights beside it are stored in.

    `begin_of_text` is the id before each text, by default `end_of_text`, which ends the one before.
    """
    resolved = {"n_kv_head": config.kv_heads, "head_dim": config.head_width, "n_hidden": config.hidden_width}
    keys = {
        "architectures": [ARCHITECTURES[config.dialect]],
        "model_type": config.dialect,
        "vocab_size": vocab_size,
        "bos_token_id": end_of_text if begin_of_text is None else begin_of_text,
        "eos_token_id": end_of_text,
        "initializer_range": init_std,
        "dtype": dtype,
    } | {theirs: resolved.get(ours, getattr(config, ours)) for ours, (theirs, _) in KEYS[config.dialect].items()}
    if config.dialect == "gpt2":
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config.dropout)
        return keys | dropout | {"activation_function": "gelu_new"}
    keys |= {"hidden_act": "silu", "attention_bias": False, "attention_dropout": config.dropout}
    keys |= {"mlp_bias": False} if config.dialect == "llama" else {"use_sliding_window": False}
    return keys | rope_keys(config)


def rope_keys(config: ModelConfig) -> dict[str, Any]:
    """The rotary frequencies, as transformers 5 spells them and as 4 does."""
    scaling: dict[str, Any] = {"rope_type": "default" if config.rope_scaling == "none" else config.rope_scaling}
    for ours, theirs in ROPE_KEYS[config.rope_scaling].items():
        scaling[theirs] = config.original_context if ours == "rope_original_context" else getattr(config, ours)
    keys = {"rope_parameters": scaling | {"rope_theta": config.rope_theta}, "rope_theta": config.rope_theta}
    return keys if config.rope_scaling == "none" else keys | {"rope_scaling": scaling}


def from_huggingface_config(keys: Mapping[str, Any], where: object) -> tuple[ModelConfig, int]:
    """The decoder's configuration and vocabulary size.

    `where` names the file in messages. Raises UserError that names every key which the decoder cannot express.
    """
    dialect = keys.get("model_type")
    if not isinstance(dialect, str) or dialect not in ARCHITECTURES:
        raise UserError(
            f"{where}: model_type={dialect!r} is not one of {', '.join(ARCHITECTURES)}; use a model of these"
        )
    if dialect == "gpt2":
        keys = {GPT2_ALIASES[key]: value for key, value in keys.items() if key in GPT2_ALIASES} | dict(keys)
    rope, names, refused = read_rope(keys) if dialect != "gpt2" else ({}, {}, [])
    refused = unrepresentable(dialect, keys) + refused
    if refused:
        raise UserError(f"{where}: this architecture cannot be represented: " + "; ".join(refused))
    vocab_size = keys.get("vocab_size", VOCAB_SIZES[dialect])
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < 1:
        raise UserError(f"{where}: vocab_size={vocab_size!r} is not a positive whole number")
    names |= {ours: theirs for ours, (theirs, _) in KEYS[dialect].items()}
    shape = {ours: keys.get(theirs, default) for ours, (theirs, default) in KEYS[dialect].items()}
    try:
        # A null that transformers would refuse: there it would compute nothing, here it would take our own default.
        null = [theirs for ours, (theirs, _) in KEYS[dialect].items() if shape[ours] is None and ours not in NULLABLE]
        if null:
            raise ConfigError([Mistake(name, "has no value", "null") for name in null])
        return from_dict(ModelConfig, {"dialect": dialect} | shape | rope), vocab_size
    except ConfigError as error:
        listed = (replace(mistake, option=names.get(mistake.option, mistake.option)) for mistake in error.mistakes)
        raise UserError(f"{where}: " + "; ".join(map(str, listed))) from None
    except OverflowError:
        raise UserError(f"{where}: a number in it is too large") from None


NULLABLE = ("n_kv_head", "head_dim", "n_hidden")


def unrepresentable(dialect: str, keys: Mapping[str, Any]) -> list[str]:
    """What in config.json asks for another computation than the dialect's, one phrase a key."""
    refused = [
        f"{name}={keys[name]!r} (only {' or '.join(map(repr, allowed))})"
        for name, allowed in FIXED_KEYS[dialect].items()
        if name in keys and keys[name] not in allowed
    ]
    positions = keys.get("n_positions", GPT2_KEYS["context_length"][1])
    if dialect == "gpt2" and keys.get("n_ctx", positions) != positions:
        refused.append(f"n_ctx={keys['n_ctx']!r} (only n_positions, {positions!r})")
    layers = keys.get("layer_types")
    full = isinstance(layers, list) and all(layer == "full_attention" for layer in layers)
    if dialect != "gpt2" and layers is not None and not full:
        refused.append(f"layer_types={layers!r} (only 'full_attention')")
    return refused


def read_rope(keys: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Our rotary options from config.json, their keys there for messages, and what cannot be represented."""
    name = "rope_scaling" if keys.get("rope_scaling") else "rope_parameters"
    rope = keys.get(name) or {}
    if not isinstance(rope, dict):
        return {}, {}, [f"{name}={rope!r} (only an object)"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    scaling = "none" if kind == "default" else kind
    if not isinstance(scaling, str) or scaling not in ROPE_KEYS:
        return {}, {}, [f"{name}.rope_type={kind!r} (only 'default', 'linear' or 'llama3')"]
    refused = [f"{name}.{key} (only one set for all layers)" for key, value in rope.items() if isinstance(value, dict)]
    if rope.get("partial_rotary_factor") not in (1, None):
        refused.append(f"{name}.partial_rotary_factor={rope['partial_rotary_factor']!r} (only 1)")
    options = {"rope_scaling": scaling, "rope_theta": rope.get("rope_theta", keys.get("rope_theta", 1e4))}
    names = {ours: f"{name}.{theirs}" for ours, theirs in ROPE_KEYS[scaling].items()}
    for ours, theirs in ROPE_KEYS[scaling].items():
        options[ours] = rope.get(theirs)
        if ours == "rope_original_context":  # Phi-3 and its like keep it outside; transformers then prefers that
            options[ours] = keys.get(theirs, rope.get(theirs))
            if options[ours] is None:  # said here, or it would follow a context that is changed later
                options[ours] = keys.get(*KEYS[keys["model_type"]]["context_length"])
        elif options[ours] is None:
            refused.append(f"{name}.{theirs} is missing")
    return options, names | {"rope_theta": "rope_theta"}, refused
