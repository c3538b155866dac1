"""Wrong weights: safetensors, pickles, shards."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from tests.faults.bad_inputs import Case
from tests.faults.bad_models import model
from tests.faults.spoil import MODEL, WEIGHTS, Spoil, both, cut, edit, header, remove, tensors, write

OLD = "model/pytorch_model.bin"
INDEX = "model/model.safetensors.index.json"
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


def pickled(change: str = "") -> Spoil:
    """The weights as pytorch_model.bin instead, with an expression that changes them."""

    def spoil(folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        content = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        changed = eval(change, {"torch": torch, "content": content, "one": torch.zeros(1)}) if change else content
        torch.save(changed, folder / OLD)

    return spoil


def compressed(folder: Path) -> None:
    """A pytorch_model.bin that unpacks to a thousand times its size."""
    with zipfile.ZipFile(folder / OLD) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / OLD, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def sharded(weight_map: object) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model/model-00001-of-00001.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return spoil


CASES: list[Case] = [
    model("no weights", "holds no weights", "model.safetensors nor pytorch_model.bin", spoil=remove(WEIGHTS)),
    model("weights of nothing", "model.safetensors", "download it again", spoil=cut(WEIGHTS, 0)),
    model("weights that break off in the header", "model.safetensors", "download it again", spoil=cut(WEIGHTS, 99)),
    model(
        "weights that break off", "model.safetensors", "download it again", spoil=cut(WEIGHTS, 5000), command="export"
    ),
    model(
        "weights with more behind",
        "model.safetensors",
        "download it again",
        spoil=lambda f: (f / WEIGHTS).open("ab").write(b"x"),
    ),
    model("a header longer than the file", "model.safetensors", "header", spoil=header(lambda h: None, lie=2**40)),
    model("a header shorter than it is", "model.safetensors", "header", spoil=header(lambda h: None, lie=-9)),
    model(
        "a header that is no JSON", "model.safetensors", "header", spoil=write(WEIGHTS, b"\x04" + b"\0" * 7 + b"leaf")
    ),
    model(
        "a tensor that claims a terabyte",
        "model.safetensors",
        spoil=header(lambda h: h[EMBEDDING].update(shape=[2**36, 16])),
    ),
    model(
        "a tensor beyond the file", "model.safetensors", spoil=header(lambda h: h[NORM].update(data_offsets=[0, 2**40]))
    ),
    model("tensors that overlap", "model.safetensors", spoil=header(lambda h: h[NORM].update(data_offsets=[0, 64]))),
    model("a negative shape", "model.safetensors", spoil=header(lambda h: h[NORM].update(shape=[-16]))),
    model("an unknown type", "model.safetensors", spoil=header(lambda h: h[NORM].update(dtype="F7"))),
    model("whole numbers", f"{NORM} is of type I32", spoil=header(lambda h: h[NORM].update(dtype="I32"))),
    model("another shape", f"{NORM} has shape [4, 4], not [16]", spoil=header(lambda h: h[NORM].update(shape=[4, 4]))),
    model("a missing tensor", f"{NORM} is missing", spoil=tensors(lambda t: t.pop(NORM))),
    model(
        "an extra tensor", "evil.weight is unknown", spoil=tensors(lambda t: t.update({"evil.weight": t[NORM].clone()}))
    ),
    model(
        "a tensor by two names",
        "norm.weight is there twice",
        spoil=tensors(lambda t: t.update({"norm.weight": t[NORM].clone()})),
    ),
    model(
        "weights that are no numbers",
        "the weights are damaged",
        NORM.removeprefix("model."),
        spoil=tensors(lambda t: t[NORM].fill_(float("nan"))),
        command="export",
    ),
    model("a folder for weights", "holds no weights", spoil=both(remove(WEIGHTS), lambda f: (f / WEIGHTS).mkdir())),
    model("a pickle for weights", "model.safetensors", "header", spoil=write(WEIGHTS, b"\x80\x04cos\nsystem\n.")),
    model("a zip for weights", "model.safetensors", spoil=write(WEIGHTS, b"PK\x03\x04" + b"\0" * 99)),
    model(
        "a pickle of code",
        "pytorch_model.bin",
        "could run any code",
        spoil=both(remove(WEIGHTS), write(OLD, b"\x80\x02cos\nsystem\n.")),
    ),
    model("a pickle of a list", "pytorch_model.bin", "does not hold tensors by name", spoil=pickled("[one]")),
    model(
        "a pickle of the model's object",
        "pytorch_model.bin",
        "could run any code",
        spoil=pickled("torch.nn.Linear(2, 2)"),
    ),
    model("a pickle in a dictionary", "pytorch_model.bin", "tensors by name", spoil=pickled("{'state_dict': content}")),
    model(
        "one number for a terabyte",
        "pytorch_model.bin",
        "claim more numbers",
        spoil=both(pickled(f"content | {{'{EMBEDDING}': one.expand(10**11, 16)}}"), edit(MODEL, vocab_size=10**11)),
    ),
    model(
        "tensors without data",
        "pytorch_model.bin",
        "claim more numbers",
        spoil=both(
            pickled(f"content | {{'{EMBEDDING}': torch.empty(10**11, 16, device='meta')}}"),
            edit(MODEL, vocab_size=10**11),
        ),
    ),
    model(
        "a compressed bomb",
        "pytorch_model.bin",
        "would unpack to",
        spoil=both(pickled("{'a': torch.zeros(10**7)}"), compressed),
    ),
    model("a pickle that breaks off", "pytorch_model.bin", "damaged", spoil=both(pickled(), cut(OLD, 900))),
    model(
        "shards of elsewhere",
        "names '../w.safetensors'",
        "its own folder",
        spoil=sharded({EMBEDDING: "../w.safetensors"}),
    ),
    model("shards of the machine", "names '/etc/passwd'", "its own folder", spoil=sharded({EMBEDDING: "/etc/passwd"})),
    model(
        "a shard that is gone",
        "names model-2.safetensors",
        "download or copy it",
        spoil=sharded({NORM: "model-2.safetensors"}),
    ),
    model("an index of nothing", "has no weight_map", spoil=sharded({})),
    model("an index of numbers", "names '7'", "its own folder", spoil=sharded({NORM: 7})),
]
