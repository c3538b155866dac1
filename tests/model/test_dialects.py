"""The names of the three dialects against transformers' own classes, without any weights."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gpt.config import ModelConfig
from gpt.model.dialects import from_huggingface_config, tensor_table, to_huggingface_config
from gpt.model.transformer import Decoder, rotary_frequencies
from gpt.options import ConfigError, UserError, from_dict

transformers = pytest.importorskip("transformers")

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "model"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 5e5},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
]


def read(**keys: Any) -> ModelConfig:
    return from_huggingface_config(keys, "config.json")[0]


@pytest.mark.parametrize("size", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_presets_are_the_released_sizes(size: str) -> None:
    config = from_dict(ModelConfig, yaml.safe_load((PRESETS / f"{size}.yaml").read_text()))
    keys = to_huggingface_config(config, 50257, 50256)
    released = transformers.GPT2Config(n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head)
    assert keys.pop("n_inner") == 4 * config.n_embd  # what null, as released, means
    expected = released.to_dict()
    for name, value in transformers.GPT2Config(**keys).to_dict().items():
        if name not in ("architectures", "dtype") and not name.endswith("_pdrop"):
            assert value == expected[name], name
    with torch.device("meta"):
        theirs = {name: tuple(p.shape) for name, p in transformers.GPT2LMHeadModel(released).named_parameters()}
        ours = {name: tuple(p.shape) for name, p in Decoder(config, 50257).named_parameters()}
    table = list(tensor_table(config, 50257))
    assert {entry.theirs: entry.shape for entry in table} == theirs
    assert {entry.ours for entry in table} == ours.keys()
    sizes = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}  # millions, as published
    assert round(sum(map(math.prod, theirs.values())) / 1e6) == sizes[size]


@pytest.mark.parametrize("dialect", ["gpt2", "llama", "qwen3"])
def test_an_empty_config_means_what_transformers_assumes(dialect: str) -> None:
    theirs = transformers.AutoConfig.for_model(dialect)
    config, vocab_size = from_huggingface_config({"model_type": dialect}, "config.json")
    written = to_huggingface_config(config, vocab_size, 0)
    for name in written.keys() - {"architectures", "dtype", "n_inner", "rope_theta"}:
        if not name.endswith(("_pdrop", "_token_id")):
            assert written[name] == getattr(theirs, name), name


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
@pytest.mark.parametrize("spelling", [4, 5])
def test_rotary_scaling_is_that_of_transformers(rope: dict[str, Any], spelling: int) -> None:
    shape = {"hidden_size": 256, "num_attention_heads": 2, "max_position_embeddings": 4096}
    if spelling == 5:
        keys = {"rope_parameters": rope}
    else:
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        scaling["type"] = scaling.pop("rope_type")
        keys = {"rope_scaling": scaling, "rope_theta": rope["rope_theta"], "rope_parameters": None}
    ours = read(model_type="llama", **shape, **keys)
    with torch.device("meta"):
        config = transformers.LlamaConfig(**shape, **keys, num_hidden_layers=1, vocab_size=8)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    assert torch.equal(rotary_frequencies(ours), theirs.inv_freq)
    assert len({ours.rope_scaling, "none"}) == (1 if rope["rope_type"] == "default" else 2)
    written = to_huggingface_config(ours, 8, 0)
    assert written["rope_parameters"] == rope
    assert from_huggingface_config(written, "config.json") == (read(**written), 8)
    four = {name: value for name, value in written.items() if name != "rope_parameters"}  # what transformers 4 reads
    assert rotary_frequencies(read(**four)).equal(theirs.inv_freq)


def test_llama3_scaling_defaults_to_the_context() -> None:
    scaling = {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": None}
    assert read(model_type="llama", rope_scaling=scaling, max_position_embeddings=640).original_context == 640
    outside = {"rope_scaling": scaling, "original_max_position_embeddings": 64}
    assert read(model_type="llama", **outside).original_context == 64


@pytest.mark.parametrize(("dialect", "context"), [("llama", 640), ("llama", None), ("qwen3", None)])
def test_llama3_scaling_stays_where_the_context_is_changed(dialect: str, context: int | None) -> None:
    scaling = {name: value for name, value in LLAMA3.items() if not name.startswith("original")}
    shape = {} if context is None else {"max_position_embeddings": context}
    whole = read(model_type=dialect, rope_scaling={"rope_type": "llama3", **scaling}, **shape)
    theirs = transformers.AutoConfig.for_model(dialect, **shape)
    assert whole.rope_original_context == whole.context_length == theirs.max_position_embeddings
    cut = dataclasses.replace(whole, context_length=32)
    assert torch.equal(rotary_frequencies(cut), rotary_frequencies(whole))
    assert to_huggingface_config(cut, 8, 0)["rope_scaling"]["original_max_position_embeddings"] == whole.context_length


def test_the_ids_around_a_text() -> None:
    for begin, expected in ((None, 7), (0, 0), (3, 3)):
        keys = to_huggingface_config(ModelConfig(), 8, 7, begin_of_text=begin)
        assert (keys["bos_token_id"], keys["eos_token_id"]) == (expected, 7)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"dialect": "gpt2", "rope_scaling": "linear", "rope_factor": 2.0}, "rope_scaling"),
        ({"rope_factor": 2.0}, "rope_factor"),
        ({"rope_scaling": "linear", "rope_factor": 0.5}, "rope_factor"),
        ({"rope_scaling": "llama3", "rope_low_freq_factor": 4.0}, "rope_high_freq_factor"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_scaling": "llama3", "rope_original_context": 0}, "rope_original_context"),
    ],
)
def test_rotary_options_are_validated(options: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_dict(ModelConfig, options)
    assert [mistake.option for mistake in error.value.mistakes] == [option]


CASES = [
    ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
    ("gpt2", {"n_positions": 512, "n_ctx": 1024}, "n_ctx=1024 (only n_positions, 512)"),
    ("gpt2", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
    ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads="),
    ("gpt2", {"n_layer": None}, "n_layer=null"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
    ("llama", {"mlp_bias": True}, "mlp_bias=True"),
    ("llama", {"attention_bias": True}, "attention_bias=True"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp=2"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor=0.5"),
    ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type='yarn'"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling.rope_type='dynamic'"),
    ("llama", {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0.1}}, "rope_scaling.factor=0.1: must be at least 1"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling='linear'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type='longrope'"),
    ("llama", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta=x: is not a number"),
    ("llama", {"num_key_value_heads": 5}, "num_key_value_heads=5: must divide"),
    ("llama", {"rms_norm_eps": "x"}, "rms_norm_eps=x"),
    ("llama", {"hidden_size": 10**400}, "too large"),
    ("llama", {"vocab_size": True}, "vocab_size=True"),
    ("qwen3", {"use_sliding_window": True}, "use_sliding_window=True"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
    ("qwen3", {"layer_types": [["full_attention"]]}, "layer_types="),
    ("llama", {"rope_parameters": {"rope_type": ["linear"]}}, "rope_type=['linear']"),
    ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters.full_attention"),
    ("qwen3", {"head_dim": 7}, "head_dim=7"),
    ("qwen3", {"intermediate_size": 0}, "intermediate_size=0"),
]


@pytest.mark.parametrize(("dialect", "keys", "message"), CASES, ids=lambda part: str(part)[:60])
def test_keys_that_change_the_computation_are_refused_by_name(dialect: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read(model_type=dialect, **keys)
    assert message in str(error.value)
    assert str(error.value).startswith("config.json: ")


def test_every_refused_key_is_listed() -> None:
    with pytest.raises(UserError, match=r"hidden_act.*mlp_bias.*rope_scaling"):
        read(model_type="llama", hidden_act="relu", mlp_bias=True, rope_scaling={"type": "yarn"})


@pytest.mark.parametrize(
    ("dialect", "keys"),
    [
        ("gpt2", {"reorder_and_upcast_attn": True, "n_ctx": 1024, "activation_function": "gelu_pytorch_tanh"}),
        ("gpt2", {"summary_type": "mean", "resid_pdrop": 0.5, "unknown_key": 1, "pruned_heads": {}}),
        ("llama", {"pretraining_tp": None, "rope_scaling": None, "partial_rotary_factor": None, "sliding_window": 4}),
        ("llama", {"head_dim": None, "num_key_value_heads": None, "rope_parameters": {"type": "default"}}),
        ("qwen3", {"sliding_window": 4096, "use_sliding_window": False, "layer_types": ["full_attention"]}),
    ],
)
def test_keys_that_change_nothing_are_passed_over(dialect: str, keys: dict[str, Any]) -> None:
    assert read(model_type=dialect, **keys) == read(model_type=dialect)


def test_gpt2_takes_the_keys_of_its_attribute_map() -> None:
    keys = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 9}
    found = read(model_type="gpt2", **keys)
    assert (found.n_embd, found.n_layer, found.n_head, found.context_length) == (24, 2, 3, 9)
