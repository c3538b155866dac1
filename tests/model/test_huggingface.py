"""What is refused when a model folder is read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.model import huggingface
from gpt.model.huggingface import load_model, load_weights, save_model
from gpt.options import UserError

from .conftest import VOCAB, make_decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(make_decoder(dialect="llama", n_kv_head=2), tmp_path, end_of_text=0)
    return tmp_path


@pytest.fixture
def never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a model of the size that config.json claims is made before the files were checked."""

    def fail(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(huggingface, "Decoder", fail)


def edit_config(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_the_file_is_named_where_a_key_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="mamba")
    with pytest.raises(UserError) as error:
        load_model(folder)
    assert (
        str(error.value)
        == f"{folder}/config.json: model_type='mamba' is not one of gpt2, llama, qwen3; use a model of these"
    )
    edit_config(folder, model_type=["llama"])
    with pytest.raises(UserError, match="is not one of gpt2, llama, qwen3"):
        load_model(folder)


def test_tensors_that_do_not_fit_are_all_listed(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.extra"] = torch.zeros(1)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_model(folder)
    for part in ("model.norm.weight is missing", "model.extra is unknown", "up_proj.weight has shape [2, 2]"):
        assert part in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x80\x04\x95\x00\x00", b"\xff" * 64])
def test_a_file_that_is_not_safetensors_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(folder)


@pytest.mark.usefixtures("never_built")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"hidden_size": 10**9, "head_dim": 10**9}, "embed_tokens.weight has shape"),
        ({"intermediate_size": 10**12}, "mlp.down_proj.weight has shape"),
        ({"vocab_size": 10**12}, "embed_tokens.weight has shape"),
        ({"num_hidden_layers": 10**5}, "tensors for 100000 layers"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings=1000000000000 is more than"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_an_absurd_config_allocates_nothing(folder: Path, keys: dict[str, int], message: str) -> None:
    edit_config(folder, **keys)
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.usefixtures("never_built")
def test_a_header_of_enormous_tensors_is_refused(folder: Path) -> None:
    edit_config(folder, vocab_size=10**12)
    entry = {"dtype": "F32", "shape": [10**12, 48], "data_offsets": [0, 4 * 48 * 10**12]}
    header = json.dumps({"model.embed_tokens.weight": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        load_model(folder)


def test_quantised_tensors_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.norm\.weight is of type I8, not a floating one"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.norm\.weight is of type int8, not a floating one"):
        load_model(folder)


def test_a_tensor_under_two_names_is_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"norm\.weight is there twice"):
        load_model(folder)


def test_load_weights_checks_before_it_touches_the_model(folder: Path) -> None:
    model = make_decoder(dialect="llama", n_kv_head=2, n_hidden=7)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(UserError, match=r"up_proj\.weight has shape"):
        load_weights(model, folder)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_padding_of_the_vocabulary_is_zero_after_loading(folder: Path) -> None:
    model = load_model(folder)
    assert model.embed.num_embeddings > VOCAB
    assert not model.embed.weight[VOCAB:].any()
    assert model.head.weight is model.embed.weight


def test_a_folder_without_weights_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no weights: neither model\.safetensors nor pytorch_model\.bin"):
        load_model(folder)
    with pytest.raises(UserError, match=r"is not a model folder: it has no config\.json"):
        load_model(tmp_path / "none")


def shard(folder: Path) -> None:
    save_model(load_model(folder), folder, end_of_text=0, max_shard_bytes=150_000)


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..", "", "pytorch_model.bin", 3],
)
def test_an_index_cannot_leave_its_folder(folder: Path, name: object) -> None:
    shard(folder)
    (folder.parent / "model.safetensors").touch()
    (folder / "pytorch_model.bin").touch()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(UserError, match=r"which is no \.safetensors file of its own folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "00002-of-00003.*not there"),
        (lambda folder: (folder / "model-00002-of-00003.safetensors").write_bytes(b"x"), "00002-of.*cannot be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index.json cannot be read"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "does not hold a JSON object"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}'), "names no files"),
        (
            lambda folder: (folder / "model-00002-of-00003.safetensors").write_bytes(
                (folder / "model-00001-of-00003.safetensors").read_bytes()
            ),
            "which is also in model-00001",
        ),
    ],
)
def test_damaged_shards_are_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    shard(folder)
    assert len(list(folder.glob("model-*"))) == 3
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"not tensors", b"\x80\x02}q\x00.", b"\x80\x04\x95\x00\x00", b"\xff" * 64, None]
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_pickles_are_refused(folder: Path, content: bytes | None) -> None:
    path = folder / "pytorch_model.bin"
    if content is None:
        torch.save(load_file(folder / "model.safetensors"), path)
        content = path.read_bytes()[:-5000]
    path.write_bytes(content)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"pytorch_model\.bin cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.ones(1)}}, {3: torch.ones(1)}, torch.ones(2)])
def test_pickles_of_other_things_are_refused(folder: Path, content: object) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="does not hold tensors by name"):
        load_model(folder)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_weights_are_as_readable_as_their_neighbours(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_model(make_decoder(), tmp_path, end_of_text=0)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
