"""Released weights in, trained weights out: transformers is the reference for ten models of odd shapes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.inference.beam import Rules, search
from gpt.model.huggingface import load_model, load_weights, save_model
from gpt.model.transformer import Decoder
from gpt.options import UserError

from .conftest import make_decoder

transformers = pytest.importorskip("transformers")

VOCAB, CONTEXT = 101, 40
LLAMA_SHAPE = {"hidden_size": 36, "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 53}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GPT2_SHAPE = {"n_embd": 36, "n_layer": 3, "n_head": 3}
# Name → class of transformers' configuration and its keys.
STRANGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", GPT2_SHAPE),
    "gpt2-inner": ("GPT2Config", GPT2_SHAPE | {"n_inner": 75, "layer_norm_epsilon": 1e-3}),
    "gpt2-untied": ("GPT2Config", GPT2_SHAPE | {"n_head": 1, "tie_word_embeddings": False}),
    "llama": ("LlamaConfig", LLAMA_SHAPE),
    "llama-tied-grouped": ("LlamaConfig", LLAMA_SHAPE | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-linear": (
        "LlamaConfig",
        LLAMA_SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}},
    ),
    "llama3": (
        "LlamaConfig",
        LLAMA_SHAPE
        | {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}, "head_dim": 16, "rms_norm_eps": 1e-3},
    ),
    "qwen3": ("Qwen3Config", LLAMA_SHAPE | {"head_dim": 6, "num_key_value_heads": 6}),
    "qwen3-tied-wide": (
        "Qwen3Config",
        LLAMA_SHAPE | {"head_dim": 10, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen3-llama3": (
        "Qwen3Config",
        LLAMA_SHAPE | {"head_dim": 22, "num_key_value_heads": 3, "rope_parameters": LLAMA3},
    ),
}
TIED = ("gpt2", "gpt2-inner", "llama-tied-grouped", "qwen3-tied-wide")


@torch.no_grad()
def make_stranger(name: str) -> Any:
    """A transformers model whose every tensor is far from its initial value."""
    kind, keys = STRANGERS[name]
    length = {"n_positions": CONTEXT} if kind == "GPT2Config" else {"max_position_embeddings": CONTEXT}
    ends = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0, "initializer_range": 0.2}
    torch.manual_seed(sorted(STRANGERS).index(name))
    config = getattr(transformers, kind)(vocab_size=VOCAB, **keys, **length, **ends)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=STRANGERS, ids=str)
def stranger(request: pytest.FixtureRequest) -> Any:
    return make_stranger(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved GPT-2 with a tied head."""
    make_stranger("gpt2").save_pretrained(tmp_path)
    return tmp_path


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, CONTEXT), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal_logits(ours: Decoder, theirs: Any) -> None:
    torch.testing.assert_close(ours.eval()(tokens()), theirs(tokens()).logits, atol=1e-4, rtol=0)


def assert_equal_weights(found: Decoder, expected: Decoder) -> None:
    for name, parameter in expected.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name


def edit_json(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_import_export_and_import_again(stranger: Any, tmp_path: Path) -> None:
    stranger.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert_equal_logits(ours, stranger)
    (tmp_path / "out").mkdir()
    save_model(ours, tmp_path / "out", end_of_text=0)
    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert_equal_logits(ours, theirs.eval())
    again = load_model(tmp_path / "out")
    assert_equal_weights(again, ours)
    save_model(again, tmp_path, end_of_text=0)
    assert (tmp_path / "config.json").read_bytes() == (tmp_path / "out" / "config.json").read_bytes()


@torch.no_grad()
def test_greedy_text_is_that_of_generate(stranger: Any, tmp_path: Path) -> None:
    stranger.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    row = tokens()[:1, :5]
    expected = stranger.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=25, do_sample=False)
    while row.shape[1] < 30:
        row = torch.cat((row, ours(row, last_only=True).argmax(-1)), dim=1)
    assert row.tolist() == expected.tolist()


@torch.no_grad()
def test_four_beams_are_those_of_generate(stranger: Any, tmp_path: Path) -> None:
    stranger.save_pretrained(tmp_path)
    ours = load_model(tmp_path).eval()
    row, ids = tokens()[:1, :5], {"eos_token_id": 7, "pad_token_id": 7}
    expected = stranger.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=20, num_beams=4, num_return_sequences=4,
        do_sample=False, early_stopping=False, **ids,
    )  # fmt: skip
    rules = Rules(4, 1.0, lambda made: "end_of_text" if made[-1] == 7 else "length" if len(made) == 20 else None)
    (found,) = search(ours, [row[0].tolist()], rules, 20, 1.0, VOCAB)
    theirs = [beam[5:].tolist() for beam in expected]
    assert [hypothesis.tokens for hypothesis in found[:4]] == [
        made[: made.index(7) + 1] if 7 in made else made for made in theirs
    ]


@pytest.mark.parametrize("name", TIED)
def test_a_base_model_saves_names_without_prefix(name: str, tmp_path: Path) -> None:
    stranger = make_stranger(name)
    stranger.base_model.save_pretrained(tmp_path)
    assert not any(key.startswith(("transformer.", "model.")) for key in load_file(tmp_path / "model.safetensors"))
    assert_equal_logits(load_model(tmp_path), stranger)


def test_a_base_model_without_a_tied_head_lacks_it(tmp_path: Path) -> None:
    make_stranger("llama").base_model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lm_head\.weight is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_transformers_shards_are_read(name: str, tmp_path: Path) -> None:
    stranger = make_stranger(name)
    stranger.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal_logits(load_model(tmp_path), stranger)


def save_pickled(stranger: Any, folder: Path, shards: int = 1, zipped: bool = True, base: bool = False) -> None:
    stranger.config.save_pretrained(folder)
    # state_dict keeps the tied head, as pytorch_model.bin did.
    items = list((stranger.base_model if base else stranger).state_dict().items())
    if shards == 1:
        torch.save(dict(items), folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        return
    weight_map = {}
    for shard in range(shards):
        part = dict(items[shard::shards])
        name = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, folder / name, _use_new_zipfile_serialization=zipped)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3-tied-wide"])
def test_pickled_weights_are_read(name: str, zipped: bool, shards: int, tmp_path: Path) -> None:
    stranger = make_stranger(name)
    save_pickled(stranger, tmp_path, shards, zipped)
    assert_equal_logits(load_model(tmp_path), stranger)


def test_safetensors_are_preferred(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"broken")
    load_model(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pickled", [False, True])
def test_other_precisions_are_cast(dtype: torch.dtype, pickled: bool, tmp_path: Path) -> None:
    stranger = make_stranger("gpt2").to(dtype)
    save_pickled(stranger, tmp_path) if pickled else stranger.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.embed.weight.dtype is torch.float32
    assert_equal_logits(ours, stranger.float())


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_buffers_of_old_files_are_passed_over(folder: Path, prefix: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.replace("transformer.", prefix): tensor for name, tensor in tensors.items()}
    for layer in range(3):
        tensors[f"{prefix}h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        tensors[f"{prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, folder / "model.safetensors")
    assert_equal_logits(load_model(folder), make_stranger("gpt2"))


@pytest.mark.parametrize("buffer", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_rotary_buffers_of_old_files_are_passed_over(buffer: str, tmp_path: Path) -> None:
    make_stranger("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {buffer: torch.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    load_model(tmp_path)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_tied_head_must_equal_the_embedding(folder: Path, pickled: bool) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    def save() -> None:
        torch.save(tensors, folder / "pytorch_model.bin") if pickled else save_file(
            tensors, folder / "model.safetensors"
        )

    if pickled:
        (folder / "model.safetensors").unlink()
    save()
    assert_equal_logits(load_model(folder), make_stranger("gpt2"))
    tensors["lm_head.weight"][VOCAB - 1, 5] += 1
    save()
    with pytest.raises(UserError, match=r"lm_head\.weight differs.*tie_word_embeddings"):
        load_model(folder)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    assert not torch.equal(load_model(folder).head.weight, load_model(folder).embed.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen3-tied-wide"])
def test_saving_in_shards_and_in_half(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    stranger = make_stranger(name)
    stranger.save_pretrained(tmp_path / "in")
    ours = load_model(tmp_path / "in")
    save_model(ours, tmp_path, end_of_text=0)
    save_model(ours, tmp_path, end_of_text=0, dtype=dtype, max_shard_bytes=20_000)
    sizes = [path.stat().st_size for path in tmp_path.glob("model-*.safetensors")]
    assert len(sizes) >= 3
    assert max(sizes) < 20_000 + 4_000  # with headers
    assert not (tmp_path / "model.safetensors").exists()  # the earlier save, which would be read first
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype is dtype
    again = load_model(tmp_path)
    assert_equal_logits(again, theirs.float().eval())
    for name, parameter in ours.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.to(dtype).float()), name
    save_model(ours, tmp_path, end_of_text=0)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


class Evil:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("zipped", [True, False, None])
def test_code_in_a_pickle_does_not_run(folder: Path, zipped: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = folder / "ran", folder / "pytorch_model.bin"
    content = load_file(folder / "model.safetensors") | {"transformer.ln_f.bias": Evil(marker)}
    (folder / "model.safetensors").unlink()
    if zipped is None:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read.*could run any code"):
        load_model(folder)
    assert not marker.exists()
    torch.load(path, weights_only=False) if zipped is not None else pickle.loads(path.read_bytes())
    assert marker.exists()  # it would have run


@torch.no_grad()
def test_load_weights_fills_a_model_there_is(decoder: Decoder, tmp_path: Path) -> None:
    save_model(decoder, tmp_path, end_of_text=0)
    expected = {name: parameter.clone() for name, parameter in decoder.named_parameters()}
    for parameter in decoder.parameters():
        parameter.mul_(2)
    load_weights(decoder, tmp_path)
    assert all(torch.equal(parameter, expected[name]) for name, parameter in decoder.named_parameters())


@torch.no_grad()
def test_weights_are_cast_to_the_models_own_precision(tmp_path: Path) -> None:
    decoder = make_decoder(dialect="llama")
    save_model(decoder, tmp_path, end_of_text=0)
    half = make_decoder(dialect="llama").bfloat16()
    load_weights(half, tmp_path)
    assert torch.equal(half.norm.weight, decoder.norm.weight.bfloat16())


# VmHWM and not ru_maxrss, into which Linux counts the peak of the process that started this one.
MEASURE = """
import sys
from pathlib import Path
from gpt.model.huggingface import load_model
model = load_model(Path(sys.argv[1]))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "shards", "pickled", "pickled-legacy"])
def test_loading_gpt2_peaks_at_its_weights_and_one_tensor(kind: str, tmp_path: Path) -> None:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    size = 4 * model.num_parameters()
    limit = 1.2 * size + 300e6  # of the whole process, of which importing torch takes 230 MB
    if kind.startswith("pickled"):
        limit = size + 4 * model.lm_head.weight.numel() + 300e6  # the largest tensor is held twice
        save_pickled(model, tmp_path, zipped=kind == "pickled")
    else:
        model.save_pretrained(tmp_path, max_shard_size="200MB" if kind == "shards" else "5GB")
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    peak = int(run.stdout) * 1024
    assert peak <= limit, f"{peak / 1e6:.0f} MB for weights of {size / 1e6:.0f} MB"
