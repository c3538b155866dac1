"""Adapter folders against PEFT on the same weights, both ways, and what is refused."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpt.config import LoRAConfig
from gpt.model.adapters import (
    base_fingerprint,
    base_of,
    is_adapter,
    load_adapters,
    open_model,
    read_model_config,
    save_adapters,
)
from gpt.model.context import adapt
from gpt.model.huggingface import load_model, save_model
from gpt.model.lora import adapters_of, add_adapter, add_adapters, merge_adapters
from gpt.model.transformer import Decoder
from gpt.options import UserError

from .conftest import SHAPES, VOCAB, make_decoder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # of what peft calls in it
TOKENS = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
DIALECTS = ("gpt2", "gpt2-sinusoidal", "llama-grouped", "qwen3-grouped")


@pytest.fixture(scope="module")
def peft() -> Any:
    return pytest.importorskip("peft", reason="the reference for adapters is not installed: pip install peft")


def save_base(folder: Path, shape: str = "llama-grouped") -> Path:
    folder.mkdir()
    save_model(make_decoder(**SHAPES[shape]), folder, end_of_text=0)
    return folder


def trained(base: Path, **options: Any) -> Decoder:
    """The base with adapters that have learned something."""
    model = load_model(base).eval()
    add_adapters(model, LoRAConfig(**({"rank": 4, "alpha": 6.0} | options)))
    stir(factor for adapter in adapters_of(model).values() for factor in (adapter.lora_a, adapter.lora_b))
    return model


@torch.no_grad()
def stir(parameters: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters:
        parameter.normal_(std=0.1, generator=generator)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter folder on a base in `base` beside it."""
    base = save_base(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapters(trained(base), folder, str(base))
    return folder


def reference(base: Path) -> Any:
    return pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(base)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", DIALECTS)
def test_peft_and_transformers_compute_what_we_do(tmp_path: Path, peft: Any, shape: str) -> None:
    base, folder = save_base(tmp_path / "base", shape), tmp_path / "adapter"
    folder.mkdir()
    model = trained(base)
    save_adapters(model, folder, str(base))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys and tensors that it did not expect
        expected = model(TOKENS)
        close(peft.PeftModel.from_pretrained(reference(base), folder)(TOKENS).logits, expected)
        close(reference(folder)(TOKENS).logits, expected)
        merged = open_model(folder).eval()
        close(merged(TOKENS), expected)
    assert not adapters_of(merged)
    assert (expected - load_model(base).eval()(TOKENS)).abs().max() > 0.1  # the adapters matter


FROM_PEFT: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    ("llama-grouped", {}),  # PEFT's default: queries and values
    ("llama-grouped", {"target_modules": ["k_proj", "o_proj", "up_proj"], "use_rslora": True, "lora_dropout": 0.1}),
    ("qwen3-grouped", {"target_modules": "all-linear", "init_lora_weights": "gaussian"}),
]


@pytest.mark.parametrize(("shape", "options"), FROM_PEFT)
def test_we_compute_what_peft_does(tmp_path: Path, peft: Any, shape: str, options: dict[str, Any]) -> None:
    base, folder = save_base(tmp_path / "base", shape), tmp_path / "adapter"
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, **options)
    theirs = peft.get_peft_model(reference(base), config).eval()
    stir(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(folder)
    model = load_model(base).eval()
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        close(open_model(folder).eval()(TOKENS), expected)
        load_adapters(model, folder)
        close(model(TOKENS), expected)


def test_what_was_stacked_is_written_where_it_has_one_rank(tmp_path: Path, peft: Any) -> None:
    base, folders = save_base(tmp_path / "base"), (tmp_path / "theirs", tmp_path / "ours")
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj", "k_proj", "v_proj"])
    theirs = peft.get_peft_model(reference(base), config).eval()
    stir(parameter for name, parameter in theirs.named_parameters() if "lora_" in name)
    theirs.save_pretrained(folders[0])
    folders[1].mkdir()
    model = load_model(base)
    load_adapters(model, folders[0])
    save_adapters(model, folders[1], str(base))
    with torch.no_grad():
        close(peft.PeftModel.from_pretrained(reference(base), folders[1])(TOKENS).logits, theirs(TOKENS).logits)
    load_adapters(model, folders[1])  # nine is now the rank of all


def test_saving_and_loading_gives_back_every_bit(folder: Path, decoder: Decoder, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    add_adapters(decoder, LoRAConfig(rank=3, alpha=0.1, targets=("attention.qkv", "mlp.up")))
    stir(factor for adapter in adapters_of(decoder).values() for factor in (adapter.lora_a, adapter.lora_b))
    before = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    save_adapters(decoder, again, "base")
    stir(parameter for parameter in decoder.parameters() if parameter.requires_grad)
    load_adapters(decoder, again)
    assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
    plain = make_like(decoder)
    load_adapters(plain, again)
    assert all(torch.equal(parameter, before[name]) for name, parameter in plain.named_parameters())
    assert [name for name, parameter in plain.named_parameters() if parameter.requires_grad] == [
        name for name in before if "lora_" in name
    ]
    assert {name: module.alpha for name, module in adapters_of(plain).items()} == dict.fromkeys(
        adapters_of(decoder), 0.1
    )


def make_like(model: Decoder) -> Decoder:
    """A plain model with the base weights of an adapted one."""
    plain = Decoder(model.config, model.vocab_size)
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name})
    return plain


def test_the_folder_is_small_and_says_what_it_is(folder: Path) -> None:
    keys = json.loads((folder / "adapter_config.json").read_text())
    assert keys["target_modules"] == [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert (keys["r"], keys["lora_alpha"], keys["fan_in_fan_out"]) == (4, 6, False)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.2.self_attn.k_proj.lora_B.weight"].shape == (24, 4)
    assert len(tensors) == 3 * 7 * 2
    assert is_adapter(folder)
    assert not is_adapter(folder.parent / "base")
    assert read_model_config(folder) == read_model_config(folder.parent / "base")


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [("me/it", "me/it", None), ("me/it@refs/pr/1", "me/it", "refs/pr/1"), ("/a/b c@d/e", "/a/b c@d/e", None)],
)
def test_the_base_keeps_its_name(folder: Path, base: str, name: str, revision: str | None, tmp_path: Path) -> None:
    save_adapters(trained(tmp_path / "base"), folder, base)
    keys = json.loads((folder / "adapter_config.json").read_text())
    assert (keys["base_model_name_or_path"], keys["revision"]) == (name, revision)
    assert base_of(folder) == base


def edit(folder: Path, **keys: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "LOHA"),
        ("task_type", "SEQ_CLS"),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("use_dora", True),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 2}),
        ("alpha_pattern", {"q_proj": 2}),
        ("layers_to_transform", [0]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]),
        ("of_a_later_peft", "on"),
        ("r", 0),
        ("r", True),
        ("lora_alpha", None),
        ("lora_alpha", float("nan")),
        ("base_model_name_or_path", 3),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(folder: Path, key: str, value: object) -> None:
    edit(folder, **{key: value})
    with pytest.raises(UserError) as error:
        open_model(folder)
    assert f"{key}={value!r}" in str(error.value)
    assert str(folder / "adapter_config.json") in str(error.value)


def test_every_default_of_peft_is_accepted(folder: Path, peft: Any) -> None:
    keys = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6).to_dict()
    edit(folder, **{name: value for name, value in keys.items() if name != "base_model_name_or_path"})
    open_model(folder)


def test_tensors_that_do_not_fit_are_all_listed(folder: Path) -> None:
    prefix, path = "base_model.model.model.layers", folder / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[f"{prefix}.1.mlp.up_proj.lora_A.weight"]
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(1)
    tensors[f"{prefix}.0.self_attn.q_proj.lora_B.weight"] = torch.zeros(48, 2)
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        open_model(folder)
    for part in (
        "layers.1.mlp.up_proj.lora_A.weight is missing",
        "lm_head.lora_A.weight is unknown",
        "layers.0.self_attn.q_proj.lora_B.weight has shape [48, 2], not [48, 4]",
    ):
        assert part in str(error.value)
    save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="is of type I32, not a floating one"):
        open_model(folder)
    save_file({}, path)
    with pytest.raises(UserError, match="holds no tensor"):
        open_model(folder)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x80\x04\x95\x00\x00"])
def test_a_file_that_is_not_safetensors_is_refused(folder: Path, content: bytes) -> None:
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read"):
        open_model(folder)


def test_a_pickle_is_not_read(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="is a pickle"):
        open_model(folder)
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match="not a whole adapter folder"):
        open_model(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "{}"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        open_model(folder)


def test_a_base_that_is_not_there_is_named_with_the_remedy(folder: Path) -> None:
    base = folder.parent / "base"
    for call in (open_model, read_model_config):
        base.rename(folder.parent / "moved")
        with pytest.raises(UserError) as error:
            call(folder)
        for part in (f"{folder} adapts {base}", "edit base_model_name_or_path"):
            assert part in str(error.value)
        (folder.parent / "moved").rename(base)
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(UserError, match="names no base model"):
        open_model(folder)
    edit(folder, base_model_name_or_path=str(folder))
    with pytest.raises(UserError, match="itself an adapter"):
        open_model(folder)


def test_a_base_that_was_trained_further_is_refused(folder: Path) -> None:
    base = folder.parent / "base"
    model = load_model(base)
    model(TOKENS, TOKENS).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-6).step()
    save_model(model, base, end_of_text=0)
    with pytest.raises(UserError, match="trained on other weights"):
        open_model(folder)
    (folder / "adapter_base.json").unlink()  # a stranger's says nothing of its base
    open_model(folder)


def test_the_fingerprint_is_of_the_base_alone(folder: Path, decoder: Decoder) -> None:
    before = base_fingerprint(decoder)
    add_adapters(decoder, LoRAConfig(rank=2))
    stir(parameter for parameter in decoder.parameters() if parameter.requires_grad)
    assert base_fingerprint(decoder) == before
    merge_adapters(decoder)
    assert base_fingerprint(decoder) != before
    for parameter in decoder.parameters():
        if parameter is not getattr(decoder, "positions", nn.Embedding(1, 1)).weight:
            before = base_fingerprint(decoder)
            with torch.no_grad():
                parameter[: len(parameter) // 2] *= 1 + 1e-6
            assert base_fingerprint(decoder) != before
    facts = json.loads((folder / "adapter_base.json").read_text())
    assert facts["fingerprint"] == base_fingerprint(load_model(folder.parent / "base"))


@pytest.mark.parametrize("shape", ["gpt2", "gpt2-sinusoidal"])
def test_adapters_of_a_shorter_context_fit_the_base(tmp_path: Path, shape: str) -> None:
    base, folder = save_base(tmp_path / "base", shape), tmp_path / "adapter"
    folder.mkdir()
    model = load_model(base)
    adapt(model, replace(model.config, context_length=16))
    add_adapters(model, LoRAConfig(rank=2))
    save_adapters(model, folder, str(base))
    assert (
        open_model(folder).config == read_model_config(folder)[0] == replace(load_model(base).config, context_length=16)
    )
    (folder / "adapter_base.json").unlink()
    assert open_model(folder).config.context_length == 24


def test_the_same_adapters_make_the_same_files(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder.parent / "base")
    load_adapters(model, folder)
    files = []
    for number in range(8):  # a hash table's order would differ now and then
        (again := tmp_path / f"again-{number}").mkdir()
        save_adapters(model, again, str(folder.parent / "base"))
        files.append({path.name: path.read_bytes() for path in again.iterdir()})
    assert all(other == files[0] for other in files)


def test_a_model_with_other_adapters_is_refused(folder: Path) -> None:
    for options in ({"rank": 2}, {"alpha": 1.0}, {"targets": ("mlp.up",)}):
        model = trained(folder.parent / "base", **options)
        with pytest.raises(UserError, match="than the model has"):
            load_adapters(model, folder)


def test_adapters_of_several_ranks_are_not_written(folder: Path) -> None:
    model = load_model(folder.parent / "base")
    for rank, target in enumerate(("mlp.up", "mlp.down"), 1):
        add_adapter(model, f"blocks.0.{target}", rank, 1.0)
    with pytest.raises(UserError, match="2 different ranks"):
        save_adapters(model, folder, "base")
