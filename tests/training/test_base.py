"""The base that a run keeps for its adapters: the right one, whole, and never changed from outside."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.config import LoRAConfig, RunConfig
from gpt.model.adapters import find_base, save_adapters
from gpt.model.huggingface import load_model
from gpt.model.lora import add_adapters
from gpt.options import UserError
from gpt.training.base import keep_base, kept_base

from .test_initial import make_folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def keep(init_from: Path, run_dir: Path) -> str:
    return keep_base(RunConfig(init_from=str(init_from), run_dir=str(run_dir), lora=LoRAConfig(rank=2)))


def publish_adapters(base: Path, run_dir: Path) -> Path:
    """A checkpoint of adapters in a run, as far as its base is concerned."""
    folder = run_dir / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    model = load_model(base)
    add_adapters(model, LoRAConfig(rank=2))
    save_adapters(model, folder, str(run_dir / "base"))
    return folder


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_what_is_kept_is_a_model_and_known_by_any_spelling(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    assert keep(folder, run_dir) == str(run_dir / "base")
    assert all(map(torch.equal, load_model(run_dir / "base").parameters(), load_model(folder).parameters()))
    assert kept_base(f"{tmp_path}/./poet/", run_dir) == run_dir / "base"
    assert kept_base(str(tmp_path / "prose"), run_dir) is None


def test_a_start_that_never_saved_leaves_its_place_to_another(tmp_path: Path, run_dir: Path) -> None:
    poet, prose = make_folder(tmp_path / "poet"), make_folder(tmp_path / "prose")
    other_weights(prose)
    keep(poet, run_dir)
    keep(prose, run_dir)
    assert weights(run_dir / "base") == weights(prose) != weights(poet)


def test_another_model_under_the_same_name_is_refused_and_not_kept(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    keep(folder, run_dir)
    publish_adapters(folder, run_dir)
    shutil.rmtree(run_dir / "base")
    shutil.copytree(folder, tmp_path / "then")
    other_weights(folder)
    with pytest.raises(UserError, match="no longer has the weights"):
        keep(folder, run_dir)
    assert not (run_dir / "base").exists()
    shutil.rmtree(folder)
    (tmp_path / "then").rename(folder)
    keep(folder, run_dir)
    assert weights(run_dir / "base") == weights(folder)


def test_only_a_checkpoint_of_ours_looks_for_its_base_in_the_run(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    keep(folder, run_dir)
    adapters = publish_adapters(folder, run_dir)
    assert find_base(adapters) == run_dir / "base"
    stranger = run_dir / "adapters" / "theirs"
    shutil.copytree(adapters, stranger)
    config = json.loads((stranger / "adapter_config.json").read_text())
    (stranger / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    assert find_base(stranger) == folder


def test_a_folder_that_is_written_again_does_not_change_what_is_kept(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    keep(folder, run_dir)
    before = {path.name: path.read_bytes() for path in (run_dir / "base").iterdir()}
    for path in folder.iterdir():
        with path.open("r+b") as file:
            file.write(b"overwritten")
    assert {path.name: path.read_bytes() for path in (run_dir / "base").iterdir()} == before


def test_the_weights_of_a_checkpoint_are_linked(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "first" / "checkpoints" / "step-00000005")
    keep(folder, run_dir)
    linked = {path.name for path in (run_dir / "base").iterdir() if os.stat(path).st_nlink > 1}
    assert linked == {"model.safetensors"}


def test_an_empty_place_is_taken_and_a_full_one_refused(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    (run_dir / "base").mkdir()
    keep(folder, run_dir)
    assert weights(run_dir / "base") == weights(folder)
    (tmp_path / "other" / "base").mkdir(parents=True)
    (tmp_path / "other" / "base" / "precious").write_text("mine")
    with pytest.raises(UserError, match="is in the way"):
        keep(folder, tmp_path / "other")
    assert (tmp_path / "other" / "base" / "precious").read_text() == "mine"


def test_shards_of_any_name_are_kept(tmp_path: Path, run_dir: Path) -> None:
    folder = make_folder(tmp_path / "poet")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "weights-a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "weights-a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    keep(folder, run_dir)
    assert all(map(torch.equal, load_model(run_dir / "base").parameters(), load_model(folder).parameters()))
