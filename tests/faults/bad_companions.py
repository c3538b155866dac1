"""What comes with weights: tokenizers, adapters, the state of a run."""

from __future__ import annotations

import shutil

from tests.faults.bad_inputs import Case, bad
from tests.faults.bad_models import model
from tests.faults.lab import TRAIN
from tests.faults.spoil import MODEL, Spoil, both, cut, edit, inside, remove, write

ADAPTER = "adapter/adapter_config.json"
TOKENIZER = "model/tokenizer.json"
STATE = "run/checkpoints/step-00000002/trainer/state.json"
CONTINUE = tuple(each for each in TRAIN if not each.startswith("train.max_steps"))
SHAPE = tuple(f"-model.{name}" for name in ("n_layer", "n_head", "n_embd", "context_length"))


def without_sums(spoil: Spoil) -> Spoil:
    """A run of before there were checksums, which would tell first."""
    return both(remove("run/checkpoints/step-00000002/trainer/SHA256SUMS"), edit(STATE, format=1), spoil)


def adapter(name: str, *says: str, spoil: Spoil, command: str = "sample") -> Case:
    return bad(name, command, "checkpoint=adapter", says=says, spoil=spoil)


TOKENIZERS = [
    model("no tokenizer", "no tokenizer.json there", "give a folder", spoil=remove(TOKENIZER)),
    model("a tokenizer that breaks off", TOKENIZER, "not a tokenizer.json", spoil=cut(TOKENIZER, 500)),
    model("another JSON", TOKENIZER, "not a tokenizer.json", spoil=write(TOKENIZER, "{}")),
    model(
        "a tokenizer without an end",
        "no token ends a text",
        "name one of its tokens as eos_token",
        spoil=both(
            inside(TOKENIZER, lambda t: t.update(added_tokens=[])),
            remove("model/tokenizer_config.json"),
            edit(MODEL, "eos_token_id"),
        ),
    ),
    model(
        "more tokens than rows",
        "do not belong together",
        spoil=inside(
            TOKENIZER, lambda t: t["added_tokens"].append(t["added_tokens"][0] | {"id": 257, "content": "<x>"})
        ),
    ),
    model(
        "an id of four billion",
        "numbered from 0 on",
        spoil=inside(TOKENIZER, lambda t: t["model"]["vocab"].update(é=2**32 - 2)),
    ),
    model(
        "an end that is half a character",
        "no token ends a text",
        spoil=both(
            inside(TOKENIZER, lambda t: t.update(added_tokens=[])),
            write("model/tokenizer_config.json", '{"eos_token": "\\ud800"}'),
            edit(MODEL, "eos_token_id"),
        ),
    ),
    model(
        "a template of unknown tokens",
        TOKENIZER,
        "not a tokenizer.json",
        spoil=inside(
            TOKENIZER,
            lambda t: t.update(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {},
                }
            ),
        ),
    ),
    model(
        "settings that are no JSON",
        "tokenizer_config.json",
        "download it again",
        spoil=write("model/tokenizer_config.json", "{"),
    ),
    model(
        "a SentencePiece model",
        "SentencePiece",
        "write one with transformers",
        spoil=both(remove(TOKENIZER), write("model/tokenizer.model", b"\n")),
    ),
    model(
        "a vocabulary without merges",
        "no tokenizer.json there",
        spoil=both(remove(TOKENIZER), write("model/vocab.json", "{}")),
    ),
    model(
        "merges of nothing",
        "do not make a tokenizer",
        spoil=both(
            remove(TOKENIZER),
            write("model/vocab.json", "{"),
            write("model/merges.txt", "a b\n"),
            write("model/tokenizer_config.json", "{}"),
            edit(MODEL, model_type="gpt2"),
        ),
    ),
    model(
        "merges over which the library panics",
        "do not make a tokenizer",
        spoil=both(
            remove(TOKENIZER),
            write("model/vocab.json", '{"l": 0, "e": 3}'),
            write("model/merges.txt", "#version: 0.2\nl e\n"),
            write("model/tokenizer_config.json", "{}"),
            edit(MODEL, model_type="gpt2"),
        ),
    ),
    bad(
        "a tokenizer that knows no word",
        "sample",
        "checkpoint=char",
        "prompt=leaf",
        says=["the tokenizer cannot encode the text", "lack a token"],
        spoil=inside("char/checkpoints/best/tokenizer.json", lambda t: t.update(pre_tokenizer=None)),
    ),
    bad(
        "a tokenizer that is a model",
        "train",
        "tokenizer=huggingface",
        "tokenizer.path=model/config.json",
        says=["tokenizer.path=model/config.json", "not a tokenizer.json"],
    ),
    bad(
        "a tokenizer of other weights",
        "train",
        "init_from=model",
        "tokenizer=huggingface",
        "tokenizer.path=char/checkpoints/best",
        *SHAPE,
        says=["its tokens are not those", "leave out the tokenizer options"],
    ),
]

ADAPTERS = [
    adapter(
        "adapters without their base",
        "adapter adapts model",
        "edit base_model_name_or_path",
        spoil=lambda folder: shutil.rmtree(folder / "model"),
    ),
    adapter(
        "adapters of nobody's",
        "names no base model",
        "write its path",
        spoil=edit(ADAPTER, base_model_name_or_path=None),
    ),
    adapter(
        "adapters of a number",
        "base_model_name_or_path=7",
        "(only a path",
        spoil=edit(ADAPTER, base_model_name_or_path=7),
    ),
    adapter(
        "adapters of a name of 5,000 letters",
        "cannot be looked at",
        spoil=edit(ADAPTER, base_model_name_or_path="x" * 5000),
    ),
    adapter("adapters of a NUL", "there is no such folder", spoil=edit(ADAPTER, base_model_name_or_path="a\0b")),
    adapter("adapters of a device", "this is a file", spoil=edit(ADAPTER, base_model_name_or_path="/dev/zero")),
    adapter(
        "adapters of themselves", "itself an adapter folder", spoil=edit(ADAPTER, base_model_name_or_path="adapter")
    ),
    adapter(
        "adapters of other weights", "was trained on other weights", spoil=edit(ADAPTER, base_model_name_or_path="char")
    ),
    adapter(
        "another kind of adapter",
        "peft_type='IA3'",
        "(only 'LORA')",
        spoil=edit(ADAPTER, peft_type="IA3"),
        command="export",
    ),
    adapter("adapters with more", "use_dora=True", "(only without)", spoil=edit(ADAPTER, use_dora=True)),
    adapter("a rank of nothing", "r=0", "positive whole number", spoil=edit(ADAPTER, r=0)),
    adapter("a rank of terabytes", "does not fit its adapter_config.json", spoil=edit(ADAPTER, r=10**15)),
    adapter("an alpha of infinity", "lora_alpha=inf", spoil=edit(ADAPTER, lora_alpha=float("inf"))),
    adapter("no adapter weights", "no adapter_model.safetensors", spoil=remove("adapter/adapter_model.safetensors")),
    adapter(
        "pickled adapters",
        "adapter_model.bin is a pickle",
        "save it with PEFT as safetensors",
        spoil=both(remove("adapter/adapter_model.safetensors"), write("adapter/adapter_model.bin", b"\x80\x02.")),
    ),
    adapter(
        "adapters that break off",
        "adapter_model.safetensors",
        "download it again",
        spoil=cut("adapter/adapter_model.safetensors", 900),
        command="export",
    ),
    adapter("adapters of no JSON", "adapter_config.json", "download it again", spoil=write(ADAPTER, "{")),
    bad(
        "adapters on adapters",
        "train",
        "init_from=adapter",
        "lora.rank=2",
        "-tokenizer",
        *SHAPE,
        says=["init_from=adapter", "merge it first"],
    ),
]

RUNS = [
    bad("a state of no JSON", "evaluate", says=["state.json", "only", "to use the model"], spoil=write(STATE, "{")),
    bad("a state of another version", "evaluate", says=["state.json", "another version"], spoil=edit(STATE, format=99)),
    bad(
        "a state of wrong types",
        "export",
        "output=out",
        says=["state.json", "step is 'two'"],
        spoil=edit(STATE, step="two"),
    ),
    bad("a state with more", "export", says=["state.json", "delete"], spoil=edit(STATE, evil=1)),
    bad(
        "a run that goes on from broken weights",
        "train",
        *CONTINUE,
        "run_dir=run",
        "train.max_steps=3",
        says=["model.safetensors", "copy or download it again"],
        spoil=without_sums(cut("run/checkpoints/step-00000002/model.safetensors", 900)),
    ),
    bad(
        "a run whose optimizer breaks off",
        "train",
        *CONTINUE,
        "run_dir=run",
        "train.max_steps=3",
        says=["trainer cannot be read", "continue from the one before"],
        spoil=without_sums(cut("run/checkpoints/step-00000002/trainer/optimizer.safetensors", 900)),
    ),
    bad(
        "text of training that is not said",
        "evaluate",
        "checkpoint=model",
        says=["does not say what it was trained on", "data=text"],
    ),
]

CASES: list[Case] = [*TOKENIZERS, *ADAPTERS, *RUNS]
