"""Tokenizers from before tokenizer.json: BERT's vocab.txt (many Chinese GPT-2s), GPT-2's vocab.json and merges.txt.

They are rebuilt as `tokenizers` objects that split text as transformers' classes do (`tokenization_bert.py`,
`tokenization_gpt2.py`), under the same settings from tokenizer_config.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from gpt.options import UserError
from gpt.text.encoders import is_unicode, refusing
from gpt.text.files import read_object

BERT_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BERT_CLASSES, GPT2_CLASSES = ("BertTokenizer", "BertTokenizerFast"), ("GPT2Tokenizer", "GPT2TokenizerFast")
CONFIG_CLASSES = {"qwen3": "Qwen2Tokenizer", "llama": "LlamaTokenizer"}  # what a model_type means where none is named


def build_released(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder without tokenizer.json. Raises UserError where it has none that can be rebuilt."""
    bert, gpt2 = folder / "vocab.txt", folder / "vocab.json"
    is_gpt2 = gpt2.is_file() and (folder / "merges.txt").is_file()
    if not bert.is_file() and not is_gpt2:
        if list(folder.glob("*.model")):
            raise UserError(f"{folder}: a SentencePiece model but no tokenizer.json; {conversion(folder)}")
        raise UserError(f"{folder}: no tokenizer.json there; give a folder that contains one, or the file itself")
    model, config = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
    named = config.get("tokenizer_class") or model.get("tokenizer_class")
    named = named or (None if bert.is_file() else CONFIG_CLASSES.get(str(model.get("model_type"))))
    try:
        if named in (None, *GPT2_CLASSES) and is_gpt2:
            backend = add_special_tokens(gpt2_backend(folder, config), folder, GPT2_TOKENS)
            named_tokens = {**GPT2_TOKENS, **special_tokens(folder)}
            return add_bos_template(backend, named_tokens["bos_token"]) if config.get("add_bos_token") else backend
        if named in (None, *BERT_CLASSES) and bert.is_file():
            backend = add_special_tokens(bert_backend(bert, config), folder, BERT_TOKENS)
            return add_bert_template(backend, {**BERT_TOKENS, **special_tokens(folder)})
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # settings of the wrong type
        raise UserError(f"{folder}: its tokenizer_config.json or added_tokens.json cannot be used ({error})") from None
    raise UserError(f"{folder}: a {named} without tokenizer.json; {conversion(folder)}")


def conversion(folder: Path) -> str:
    script = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    return f"write one with transformers: from transformers import AutoTokenizer; {script}"


def bert_backend(file: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Words from `vocab.txt`, one a line, their continuations spelled ##…; the longest that fits comes first."""
    try:
        words = models.WordPiece.from_file(str(file), unk_token=text_of(config.get("unk_token")) or "[UNK]")
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{file}: cannot be read as a vocabulary ({error})") from None
    backend = tokenizers.Tokenizer(words)
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def add_bert_template(backend: tokenizers.Tokenizer, named: dict[str, str]) -> tokenizers.Tokenizer:
    """[CLS] and [SEP] around texts."""
    start, end = ((named[name], backend.token_to_id(named[name])) for name in ("cls_token", "sep_token"))
    if start[1] is not None and end[1] is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{start[0]}:0 $A:0 {end[0]}:0",
            pair=f"{start[0]}:0 $A:0 {end[0]}:0 $B:1 {end[0]}:1",
            special_tokens=[start, end],
        )
    return backend


def add_bos_template(backend: tokenizers.Tokenizer, token: str) -> tokenizers.Tokenizer:
    """`token`, of the vocabulary, before texts."""
    index = backend.token_to_id(token)
    if index is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=[f"{token}:0", "$A:0"], pair=[f"{token}:0", "$A:0", f"{token}:1", "$B:1"],
            special_tokens=[(token, index)],
        )  # fmt: skip
    return backend


def prefix_of(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """The ids that a tokenizer's post-processor puts before a single text.

    With tokenizer.json, transformers 5 asks this alone, whatever add_bos_token says in tokenizer_config.json.
    """
    if backend.post_processor is None:
        return ()
    text, index = "x", 2**31  # a tokenizer of this one word, so that what was added can be told from it
    probe = tokenizers.Tokenizer(models.WordLevel({text: index}, unk_token=text))
    probe.post_processor = backend.post_processor
    return tuple(itertools.takewhile(lambda each: each != index, probe.encode(text).ids))


def gpt2_backend(folder: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE from `vocab.json` and `merges.txt`."""
    with refusing(f"{folder}: vocab.json and merges.txt do not make a tokenizer"):
        bpe = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    backend = tokenizers.Tokenizer(bpe)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space", False))
    backend.decoder = decoders.ByteLevel()
    return backend


def add_special_tokens(backend: tokenizers.Tokenizer, folder: Path, usual: dict[str, str]) -> tokenizers.Tokenizer:
    """Mark the special tokens: those that the folder names, the usual ones where the vocabulary has them."""
    added = list(added_tokens(folder))
    for name, text in ({**usual, **special_tokens(folder)}).items():
        if text == usual.get(name) and backend.token_to_id(text) is None:
            continue  # nobody asked for it, and the model has no row for one more
        added.append(AddedToken(text, special=True, normalized=False))
    for token in added:  # each alone, so that ids follow the order
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    return backend


def added_tokens(folder: Path) -> Iterator[AddedToken]:
    """Tokens beyond the vocabulary, by id, as tokenizer_config.json or the older added_tokens.json lists them."""
    listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(listed, dict):
        for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
            flags = {name: bool(token.get(name)) for name in TOKEN_FLAGS}
            yield AddedToken(token["content"], **flags)
        return
    older = read_json(folder / "added_tokens.json")
    special = set(special_tokens(folder).values())
    for token in sorted(older, key=older.__getitem__):
        yield AddedToken(token, special=token in special, normalized=token not in special)


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that a folder names (eos_token, …), from special_tokens_map.json and tokenizer_config.json."""
    files = (read_json(folder / name) for name in ("special_tokens_map.json", "tokenizer_config.json"))
    merged = {name: text_of(token) for file in files for name, token in file.items() if name in SPECIAL_TOKENS}
    return {name: token for name, token in merged.items() if token}


def text_of(token: Any) -> str | None:
    """A token's text, written bare or as an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and is_unicode(text) else None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file. Raises UserError where it holds anything else."""
    try:
        return read_object(file)
    except FileNotFoundError:
        return {}
