"""What is fuzzed: for each reader of strangers' files, inputs and what is done with one."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from gpt.arguments import leaves, split_names
from gpt.composition import load_config
from gpt.config import DataConfig, RunConfig, SampleConfig, TokenizerConfig
from gpt.inference.console import read_prompts
from gpt.model.adapters import open_model
from gpt.model.huggingface import load_model, read_config
from gpt.model.opening import open_checkpoint
from gpt.model.tensor_files import list_tensors
from gpt.options import from_dict
from gpt.text.batches import training_data, val_batches
from gpt.text.documents import open_source, read_texts
from gpt.text.shards import open_corpus, prepare
from gpt.text.spans import Span
from gpt.text.tokenizers import Tokenizer
from gpt.training.checkpoints import read_state
from gpt.training.evaluate_checkpoint import training_data as trained_on
from gpt.training.identity import refuse_differences
from gpt.training.model_card import model_card
from tests.faults import fuzz_inputs as odd
from tests.faults.lab import script

SENTENCE = "leaf 葉, it's 12 <|endoftext|> roots\n\n  \u200b"


@dataclass(frozen=True)
class Target:
    """`read` gets one of `inputs`."""

    name: str
    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]


def targets(stock: Path, scratch: Path) -> list[Target]:
    """Every target, on files made from `stock`; the current folder must be `stock` too. `scratch` is made here."""
    scratch.mkdir(exist_ok=True)
    return [
        *text_targets(scratch),
        *corpus_targets(stock, scratch),
        *model_targets(stock, scratch),
        *tokenizer_targets(stock, scratch),
        *adapter_targets(stock, scratch),
        *state_targets(stock, scratch),
        *option_targets(scratch),
    ]


def text_targets(scratch: Path) -> list[Target]:
    lines, text = scratch / "lines.jsonl", scratch / "text.txt"

    def read_lines(value: tuple[bytes, str]) -> None:
        lines.write_bytes(value[0])
        data = from_dict(DataConfig, {"name": "jsonl", "files": [str(lines)], "template": value[1]})
        for piece in open_source(data, scratch).read():
            piece.text.encode()

    def read_pairs(value: tuple[bytes, str, str]) -> None:
        lines.write_bytes(value[0])
        pairs = {"name": "pairs", "files": [str(lines)], "prompt": value[1], "completion": value[2]}
        for piece in open_source(from_dict(DataConfig, pairs), scratch).read():
            piece.text.encode()

    def read_text(value: bytes) -> None:
        text.write_bytes(value)
        whole = "".join(piece.text for piece in read_texts((Span(text),), "whole"))
        list(read_texts((Span(text),), "blank_line"))
        assert "\0" not in whole

    def read_prompt_file(value: bytes) -> None:
        for file in (text, lines):
            file.write_bytes(value)
            for prompt in read_prompts(SampleConfig(checkpoint="x", prompt_file=str(file))):
                prompt.encode()

    good = "leaf 葉\r\n\r\nroot\n \n\ntree".encode()
    any_text = odd.damaged(good) | odd.damaged(good.decode().encode("utf-16")) | st.binary(max_size=40)
    return [
        Target("jsonl", st.tuples(odd.json_lines(), odd.templates), read_lines),
        Target("pairs", st.tuples(odd.json_lines(), odd.templates, odd.templates), read_pairs),
        Target("text", any_text, read_text),
        Target("prompt_file", odd.json_lines() | any_text, read_prompt_file),
    ]


def corpus_targets(stock: Path, scratch: Path) -> list[Target]:
    made = []
    for data in (
        {"name": "text", "files": [str(stock / "book.txt")]},
        {"name": "pairs", "files": [str(stock / "qa.jsonl")], "prompt": "{question}", "completion": "{answer}"},
    ):
        options = from_dict(DataConfig, data | {"prepared_dir": str(scratch / "prepared")})
        made.append(prepare(options, TokenizerConfig(name="byte")).folder)
    copies = [Path(shutil.copytree(folder, scratch / f"corpus{number}")) for number, folder in enumerate(made)]
    metas = [json.loads((folder / "meta.json").read_text()) for folder in made]
    names = ["train-00000.bin", "val-00000.bin", "train-pairs.bin", "val-pairs.bin", "meta.json", "tokenizer.json"]

    def use(folder: Path) -> None:
        corpus = open_corpus(folder)
        for split in (corpus.train, corpus.val):
            split.read(0, len(split))
            list(val_batches(split, 16, 4, max_tokens=100))
        training_data(corpus.train, 16, 1, 4).batch(0, 8)

    def read_meta(value: tuple[int, Any]) -> None:
        (copies[value[0]] / "meta.json").write_text(odd.dumped(value[1]))
        use(copies[value[0]])

    def read_files(value: tuple[str, bytes | None]) -> None:
        number = 1 if "pairs" in value[0] else 0
        file, good = copies[number] / value[0], (made[number] / value[0]).read_bytes()
        (copies[number] / "meta.json").write_bytes((made[number] / "meta.json").read_bytes())
        file.write_bytes(value[1])
        try:
            use(copies[number])
        finally:
            file.write_bytes(good)

    contents = [(name, (made["pairs" in name] / name).read_bytes()) for name in names]
    favourites = (
        "../../book.txt",
        "/etc/passwd",
        "train-00000.bin",
        "val-00000.bin",
        "tokenizer.json",
        "uint8",
        "object",
    )
    return [
        Target(
            "meta.json",
            st.sampled_from([0, 1]).flatmap(lambda n: st.tuples(st.just(n), odd.mutated(metas[n], favourites))),
            read_meta,
        ),
        Target(
            "shards",
            st.sampled_from(contents).flatmap(lambda each: st.tuples(st.just(each[0]), odd.damaged(each[1]))),
            read_files,
        ),
    ]


def model_targets(stock: Path, scratch: Path) -> list[Target]:
    folder = Path(shutil.copytree(stock / "model", scratch / "model"))
    weights, config = (stock / "model/model.safetensors").read_bytes(), folder / "config.json"
    keys = json.loads(config.read_text())
    length = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + length])
    old = Path(shutil.copytree(stock / "model", scratch / "old"))
    (old / "model.safetensors").unlink()
    buffer = io.BytesIO()
    torch.save({name: stored.take() for name, stored in list_tensors(stock / "model").items()}, buffer)
    sharded = Path(shutil.copytree(stock / "model", scratch / "sharded"))
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(header, "model-00001-of-00001.safetensors")}

    def read_weights(value: bytes) -> None:
        (folder / "model.safetensors").write_bytes(value)
        load_model(folder)

    def read_header(value: tuple[Any, int]) -> None:
        text = odd.dumped(value[0]).encode()
        data = struct.pack("<Q", max(0, len(text) + value[1])) + text + weights[8 + length :]
        read_weights(data)

    def read_keys(value: Any) -> None:
        (folder / "model.safetensors").write_bytes(weights)
        config.write_text(odd.dumped(value))
        try:
            read_config(folder)
            load_model(folder)
        finally:
            config.write_text(json.dumps(keys))

    def read_pickle(value: bytes) -> None:
        (old / "pytorch_model.bin").write_bytes(value)
        load_model(old)

    def read_index(value: Any) -> None:
        (sharded / "model.safetensors.index.json").write_text(odd.dumped(value))
        load_model(sharded)

    dialects = [keys, keys | {"model_type": "llama"}, keys | {"model_type": "gpt2"}]
    rope = {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}
    favourites = ("llama", "gpt2", "F16", "I64", "BOOL", "F8_E4M3", [16, 16], [0, 0], [0, 2**62], rope["rope_scaling"])
    return [
        Target("safetensors bytes", odd.damaged(weights, 8 + length) | st.binary(max_size=64), read_weights),
        Target(
            "safetensors header",
            st.tuples(odd.mutated(header, favourites), st.sampled_from([0, 0, 0, 0, 1, -1, 2**31, -(2**40)])),
            read_header,
        ),
        Target(
            "config.json",
            st.sampled_from([*dialects, keys | rope, keys | {"layer_types": ["full_attention"]}]).flatmap(
                lambda valid: odd.mutated(valid, favourites)
            ),
            read_keys,
        ),
        Target("pytorch_model.bin", odd.damaged(buffer.getvalue()) | st.binary(max_size=64), read_pickle),
        Target(
            "index.json", odd.mutated(index, ("../model/model.safetensors", "/etc/passwd", "config.json")), read_index
        ),
    ]


def tokenizer_targets(stock: Path, scratch: Path) -> list[Target]:
    folder = scratch / "tokenizer"
    folder.mkdir()
    bpe = from_dict(
        DataConfig, {"name": "text", "files": [str(stock / "book.txt")], "prepared_dir": str(scratch / "bpe")}
    )
    made = prepare(bpe, TokenizerConfig(name="bpe", vocab_size=270)).folder
    sources = [made, stock / "model", stock / "char/checkpoints/best"]
    specs = [json.loads((source / "tokenizer.json").read_text(encoding="utf-8")) for source in sources]
    bert = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{
            "id": 1, "content": "[SEP]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True,
        }],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "_"}]},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
            "vocab": {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "leaf": 3, "##s": 4},
        },
    }  # fmt: skip
    beside = json.loads((stock / "model/tokenizer_config.json").read_text())
    released = {"vocab.txt": b"[UNK]\n[CLS]\n[SEP]\nleaf\n##s\n", "merges.txt": b"#version: 0.2\nl e\n"}
    released["vocab.json"] = json.dumps({"l": 0, "e": 1, "le": 2, "<|endoftext|>": 3}).encode()

    def use() -> None:
        tokenizer = Tokenizer.load(folder)
        for text in (SENTENCE, "leaf", SENTENCE * 60):
            ids = tokenizer.encode(text)
            tokenizer.decode(ids)
        tokenizer.encode_batch([SENTENCE, "", "leaf"])
        stream = tokenizer.stream()
        for index in [*range(min(20, tokenizer.vocab_size)), tokenizer.vocab_size - 1]:
            stream.step(index)
        stream.finish()
        _ = tokenizer.token_bytes, tokenizer.fingerprint, tokenizer.begin_of_text
        tokenizer.save(scratch / "saved")

    def clear() -> None:
        for file in folder.iterdir():
            file.unlink()

    def read_spec(value: Any) -> None:
        clear()
        (folder / "tokenizer.json").write_text(odd.dumped(value))
        use()

    def read_beside(value: dict[str, Any]) -> None:
        clear()
        (folder / "tokenizer.json").write_text(json.dumps(specs[0]))
        for name, content in value.items():
            (folder / name).write_text(odd.dumped(content))
        use()

    def read_released(value: tuple[dict[str, bytes], dict[str, Any]]) -> None:
        clear()
        for name, data in value[0].items():
            (folder / name).write_bytes(data)
        for name, content in value[1].items():
            (folder / name).write_text(odd.dumped(content))
        use()

    any_config = odd.mutated(
        beside
        | {"added_tokens_decoder": {"5": {"content": "<x>", "special": True, "lstrip": False}}, "add_bos_token": True},
        ("GPT2Tokenizer", "BertTokenizer", "<|endoftext|>", "[SEP]", {"content": "<x>"}),
    )
    others = {
        "tokenizer_config.json": any_config,
        "special_tokens_map.json": odd.mutated({"eos_token": "<|endoftext|>", "bos_token": {"content": "[CLS]"}}),
        "added_tokens.json": odd.mutated({"<x>": 4, "<y>": 5}),
        "config.json": odd.mutated({"model_type": "gpt2", "eos_token_id": 3}, ([3], [[]], 2**32 - 1)),
    }
    kinds = st.sampled_from([["vocab.txt"], ["vocab.json", "merges.txt"], list(released)])
    files = kinds.flatmap(
        lambda names: st.fixed_dictionaries({n: st.just(released[n]) | odd.damaged(released[n]) for n in names})
    )
    favourites = (2**32 - 1, 2**31, "<|endoftext|>", {"type": "ByteLevel"}, {"type": "Fuse"}, {"type": "NFKC"})
    return [
        Target(
            "tokenizer.json", st.sampled_from([*specs, bert]).flatmap(lambda s: odd.mutated(s, favourites)), read_spec
        ),
        Target("files beside tokenizer.json", st.fixed_dictionaries({}, optional=others), read_beside),
        Target("vocab.txt, merges.txt", st.tuples(files, st.fixed_dictionaries({}, optional=others)), read_released),
    ]


def adapter_targets(stock: Path, scratch: Path) -> list[Target]:
    folder = Path(shutil.copytree(stock / "adapter", scratch / "adapter"))
    config, base = folder / "adapter_config.json", folder / "adapter_base.json"
    weights = (folder / "adapter_model.safetensors").read_bytes()
    keys, facts = json.loads(config.read_text()), json.loads(base.read_text())
    length = struct.unpack("<Q", weights[:8])[0]

    def read(value: tuple[Any, Any, bytes]) -> None:
        config.write_text(odd.dumped(value[0]))
        base.write_text(odd.dumped(value[1]))
        (folder / "adapter_model.safetensors").write_bytes(value[2])
        open_model(folder)

    favourites = ("model", "../model", "no/such", "adapter", "/dev/null", "~nobody/x", "a/b@../../x", "x" * 300)
    inputs = st.tuples(
        odd.mutated(keys, favourites) | st.just(keys),
        odd.mutated(facts) | st.just(facts),
        st.just(weights) | st.just(weights) | odd.damaged(weights, 8 + length),
    )
    return [Target("adapters", inputs, read)]


def state_targets(stock: Path, scratch: Path) -> list[Target]:
    folder = Path(shutil.copytree(stock / "run/checkpoints/best", scratch / "checkpoint"))
    file = folder / "trainer/state.json"
    keys = json.loads(file.read_text())
    _, model, tokenizer = open_checkpoint(str(folder))
    export = from_dict(script("export")[0].kind, {"checkpoint": "x", "output": "y"})

    def read(value: Any) -> None:
        file.write_text(odd.dumped(value))
        state = read_state(folder)
        model_card("name", model, tokenizer, export, state)
        trained_on(str(folder))
        refuse_differences(state.identity, keys["identity"], folder)

    return [Target("trainer/state.json", odd.mutated(keys), read)]


def option_targets(scratch: Path) -> list[Target]:
    commands = {name: script(name)[0] for name in ("train", "sample", "evaluate", "export")}
    names = {name: [leaf.name for leaf in leaves(each.kind)] + list(each.groups()) for name, each in commands.items()}

    def read(value: tuple[str, Sequence[str]]) -> None:
        load_config(commands[value[0]], value[1])

    arguments = st.sampled_from(list(commands)).flatmap(
        lambda name: st.tuples(st.just(name), odd.command_lines(names[name]))
    )
    letters = st.text(alphabet="[],'\" ab/.~*", max_size=40)
    lists = letters | st.builds("[{}]".format, letters) | odd.texts
    plain = odd.mutated(
        json.loads(json.dumps({"model": {"n_layer": 2}, "data": {"files": ["a"]}, "train": {"device": "cpu"}}))
    )
    return [
        Target("command line", arguments, read),
        Target("lists of names", lists, split_names),
        Target("options of a run", plain, lambda value: isinstance(value, dict) and from_dict(RunConfig, value)),
    ]
