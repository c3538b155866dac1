"""The tensors in a model folder's files: safetensors, or PyTorch's pickles read without running what is in them.

Both come whole (`model.safetensors`) or in shards beside an index (`model.safetensors.index.json`), as transformers'
`save_pretrained` writes them. Listing safetensors reads no data; a pickle is read whole, and each tensor forgotten when
it is taken.
Formats: https://huggingface.co/docs/safetensors and torch.load with `weights_only`.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt.options import UserError
from gpt.text.files import read_object

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
FLOATING = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")  # as either format spells it


@dataclass(eq=False)
class Stored:
    """A tensor in a file: what the file says of it, and, of a pickle, the tensor itself until it is taken."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    pickled: Tensor | None = None

    def take(self) -> Tensor:
        """The data on the CPU; of a pickle only once. Raises UserError where the file has broken meanwhile."""
        if self.pickled is not None:
            tensor, self.pickled = self.pickled, None
            return tensor
        return read_safetensor(self.file, self.name)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, safetensors before pickles. Raises UserError where there are none."""
    for name in (SAFETENSORS, PICKLE):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return indexed_files(folder / f"{name}.index.json")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not a model folder: it has no {SAFETENSORS}")
    raise UserError(f"{folder} holds no weights: neither {SAFETENSORS} nor {PICKLE}, whole or with an .index.json")


def indexed_files(index: Path) -> list[Path]:
    """The shards that an index names. Raises UserError where it names none, or one outside its folder."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} names no files: it has no weight_map")
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    files = []
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or "\\" in name or not name.endswith(f".{suffix}"):
            raise UserError(f"{index} names {name!r}, which is no .{suffix} file of its own folder")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there; download or copy it too")
        files.append(index.parent / name)
    return files


def list_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a folder by its name there. Raises UserError."""
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        listed = list_safetensors(file) if file.suffix == ".safetensors" else list_pickled(file)
        for name in listed.keys() & found.keys():
            raise UserError(f"{file} holds {name}, which is also in {found[name].file.name}")
        found |= listed
    return found


def compare(expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]) -> list[str]:
    """A line for each tensor that is missing, unknown, of another shape than expected or of no floating type, sorted.

    Both are by the same names; a line calls a tensor as its file does.
    """
    wrong = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    wrong += [f"{stored[name].name} is unknown" for name in stored.keys() - expected.keys()]
    for name in expected.keys() & stored.keys():
        found = stored[name]
        if found.shape != expected[name]:
            wrong.append(f"{found.name} has shape {list(found.shape)}, not {list(expected[name])}")
        elif found.dtype not in FLOATING:
            wrong.append(f"{found.name} is of type {found.dtype}, not a floating one")
    return sorted(wrong)


def list_safetensors(file: Path) -> dict[str, Stored]:
    """The tensors in one file of safetensors, without their data. Raises UserError."""
    with reading(file), safe_open(file, framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
        return {name: Stored(file, name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def read_safetensor(file: Path, name: str) -> Tensor:
    """One tensor of a file of safetensors, on the CPU. Raises UserError."""
    with reading(file), safe_open(file, framework="pt") as opened:  # closed each time: mapped pages stay resident
        return opened.get_tensor(name)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever goes wrong with a file of safetensors is a UserError."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}; copy or download it again") from None
    except RuntimeError:  # of torch, which maps the file: for want of memory, say
        if file.exists():
            raise
        raise UserError(f"{file} cannot be read: it was deleted meanwhile") from None


def write_safetensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a file that others may read as they may its neighbours: the library makes it private to its owner."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata=metadata)
    file.chmod(mode)


def list_pickled(file: Path) -> dict[str, Stored]:
    """The tensors in one file of torch.save, with their data. Raises UserError."""
    check_pickle_size(file)
    try:
        # Not mmap: a mapped file stays resident until its last tensor goes; memory of its own goes tensor by tensor.
        with warnings.catch_warnings(action="ignore"):  # of a pickle that is damaged, before it is refused
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle raises anything; torch's own message tells how to run the code in one
        raise UserError(
            f"{file} cannot be read: it is damaged, or a pickle of more than tensors, which could run any code; "
            f"use a {SAFETENSORS} of this model"
        ) from None
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    ):
        raise UserError(f"{file} cannot be read: it does not hold tensors by name")
    if any(map(is_hollow, content.values())) or sum(map(dense_bytes, content.values())) > 4 * file.stat().st_size:
        raise UserError(f"{file} cannot be read: its tensors claim more numbers than it holds; use a {SAFETENSORS}")
    return {name: Stored(file, name, tuple(tensor.shape), kind(tensor), tensor) for name, tensor in content.items()}


def check_pickle_size(file: Path) -> None:
    """Raise UserError where a file of torch.save would unpack to more than its own size: torch compresses nothing."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile):
        return  # of the older format, or damaged, which torch tells
    if unpacked > file.stat().st_size:
        raise UserError(
            f"{file} cannot be read: it is compressed and would unpack to {unpacked:,} bytes; use a {SAFETENSORS}"
        )


def is_hollow(tensor: Tensor) -> bool:
    """Whether a tensor has more numbers than there is data, as one number that is repeated by strides of 0."""
    if tensor.device.type != "cpu":
        return True
    return tensor.layout is torch.strided and dense_bytes(tensor) > tensor.untyped_storage().nbytes()


def dense_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def kind(tensor: Tensor) -> str:
    layout = "" if tensor.layout is torch.strided else f"{tensor.layout} of "
    return f"{layout}{tensor.dtype}".replace("torch.", "")
