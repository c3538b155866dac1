"""Wrong models: folders and configurations."""

from __future__ import annotations

import shutil

from tests.faults.bad_inputs import Case, bad
from tests.faults.spoil import MODEL, Spoil, cut, edit, link, write


def model(name: str, *says: str, spoil: Spoil, command: str = "sample") -> Case:
    """A spoiled model folder."""
    return bad(name, command, "checkpoint=model", says=says, spoil=spoil)


def config(name: str, *says: str, without: tuple[str, ...] = (), **keys: object) -> Case:
    """A config.json with other keys."""
    return model(name, "model/config.json", *says, spoil=edit(MODEL, *without, **keys))


FOLDERS = [
    bad("nothing of that name", "sample", "checkpoint=none", says=["checkpoint=none", "give a run (runs/…)"]),
    bad("a file", "sample", "checkpoint=book.txt", says=["checkpoint=book.txt", "give the folder"]),
    bad("a device", "export", "checkpoint=/dev/null", says=["checkpoint=/dev/null", "give the folder"]),
    bad("the root", "sample", "checkpoint=/", says=["checkpoint=/", "neither checkpoints/best nor config.json"]),
    bad("a link to nothing", "sample", "checkpoint=l", says=["checkpoint=l", "leads nowhere"], spoil=link("l", "none")),
    bad("a link in a circle", "evaluate", "checkpoint=l", says=["checkpoint=l", "leads nowhere"], spoil=link("l", "l")),
    bad(
        "a name of 5,000 letters", "sample", "checkpoint=" + "x" * 5000, says=["cannot be looked at", "check the path"]
    ),
    bad(
        "a Hub id without a network",
        "sample",
        "checkpoint=no/such",
        says=["checkpoint=no/such", "Try again with a network"],
    ),
    bad(
        "a revision that climbs", "sample", "checkpoint=a/b@../../x", says=["checkpoint=a/b@../../x", "no such folder"]
    ),
    bad(
        "a run without a checkpoint",
        "sample",
        "checkpoint=bare",
        says=["checkpoint=bare", "train it further first"],
        spoil=write("bare/config.yaml", ""),
    ),
    bad(
        "an empty folder",
        "export",
        "checkpoint=bare",
        says=["checkpoint=bare", "no checkpoint"],
        spoil=lambda folder: (folder / "bare").mkdir(),
    ),
    bad(
        "a best that leads nowhere",
        "sample",
        says=["train it further first"],
        spoil=lambda folder: shutil.rmtree(folder / "run/checkpoints/step-00000002"),
    ),
    bad("a start from nothing", "train", "init_from=none", says=["init_from=none", "there is no such folder"]),
]

CONFIGS = [
    model("no JSON", "model/config.json", "copy or download it again", spoil=write(MODEL, "{")),
    model("a list", "model/config.json", "JSON object", spoil=write(MODEL, "[]")),
    model("an empty config", "model/config.json", "model_type=None", "use a model of these", spoil=write(MODEL, "{}")),
    model("a config in UTF-16", "model/config.json", "download it again", spoil=write(MODEL, "{}".encode("utf-16"))),
    model("a config with NULs", "model/config.json", "download it again", spoil=write(MODEL, b"\0" * 99)),
    model("a config of brackets", "model/config.json", "recursion", spoil=write(MODEL, "[" * 100_000)),
    model("a config of a terabyte", "model/config.json", "1,099,511,627,776 bytes", spoil=cut(MODEL, 2**40)),
    config("another architecture", "model_type='mamba'", "use a model of these", model_type="mamba"),
    config("a list of architectures", "model_type=['qwen3']", model_type=["qwen3"]),
    config("quantized weights", "quantization_config=", "(only None)", quantization_config={"bits": 4}),
    config("another activation", "hidden_act='relu'", "(only 'silu'", hidden_act="relu"),
    config("a bias", "attention_bias=True", "(only False)", attention_bias=True),
    config("sliding windows", "layer_types=", "(only 'full_attention')", layer_types=["sliding_attention"]),
    config("an unknown stretch", "rope_type='yarn'", "(only 'default'", rope_scaling={"rope_type": "yarn"}),
    config("a stretch that is a number", "rope_scaling=7", "(only an object)", rope_scaling=7),
    config("a word for a width", "hidden_size=wide", "is not a whole number", hidden_size="wide"),
    config("null for a width", "hidden_size=null", "has no value", hidden_size=None),
    config("half a layer", "num_hidden_layers=1.5", "is not a whole number", num_hidden_layers=1.5),
    config("no layers", "num_hidden_layers=0", "at least 1", num_hidden_layers=0),
    config("negative heads", "num_attention_heads=-2", "at least 1", num_attention_heads=-2),
    config("an object for heads", "num_attention_heads=", "is not a whole number", num_attention_heads={}),
    config("a vocabulary that is a list", "vocab_size=[1]", "positive whole number", vocab_size=[1]),
    config("an epsilon that is no number", "rms_norm_eps=nan", "finite", rms_norm_eps=float("nan")),
    config("heads that do not fit", "hidden_size=17", "multiple", hidden_size=17, head_dim=None),
    config("a width of 10^400", "hidden_size=1000", "is too large", hidden_size=10**400),
    config("a context of 2^40", "max_position_embeddings=", "is more than", max_position_embeddings=2**40),
    model(
        "a vocabulary of terabytes",
        "does not fit its config.json",
        "[1000000000000, 16]",
        spoil=edit(MODEL, vocab_size=10**12),
    ),
    model("a billion layers", "does not fit its config.json", "13 tensors", spoil=edit(MODEL, num_hidden_layers=10**9)),
    model("a hidden width of terabytes", "does not fit its config.json", spoil=edit(MODEL, intermediate_size=10**12)),
    model(
        "one layer more",
        "does not fit its config.json",
        "model.layers.1.mlp.up_proj.weight is missing",
        "use the one",
        spoil=edit(MODEL, num_hidden_layers=2),
    ),
    model(
        "keys that are missing", "does not fit its config.json", spoil=edit(MODEL, "hidden_size", "num_hidden_layers")
    ),
    model("the head of another model", "lm_head.weight is missing", spoil=edit(MODEL, tie_word_embeddings=False)),
]

CASES: list[Case] = [*FOLDERS, *CONFIGS]
