"""What a tokenizer wants before each text (Llama's <s>, BERT's [CLS]), against transformers, and where it stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, processors

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text import documents, parallel_encoding
from gpt.text import tokenizers as our_tokenizers
from gpt.text.released import prefix_of
from gpt.text.shards import Corpus, prepare
from gpt.text.streams import PairStream, TokenStream
from gpt.text.tokenizers import Tokenizer

START, END = 1, 2
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
LETTERS = "abcdefghijklmnopqrstuvwxyz \n"
TEMPLATE = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", START)])
BYTES = processors.ByteLevel(trim_offsets=False)


def backend(processor: Any = None) -> tokenizers.Tokenizer:
    """A token for each letter."""
    vocab = {token: index for index, token in enumerate([*SPECIAL, *LETTERS])}
    made = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    made.add_special_tokens(SPECIAL)
    if processor is not None:
        made.post_processor = processor
    return made


def llama_folder(folder: Path, processor: Any = TEMPLATE, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend(processor).save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **named, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def gpt2_folder(folder: Path, **config: Any) -> Path:
    vocab = {letter: index for index, letter in enumerate(["<s>", *LETTERS.strip(), "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer", **config}))
    return folder


def bert_folder(folder: Path) -> Path:
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "leaf")))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


FOLDERS: dict[str, tuple[Callable[..., Path], dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    # How it is made; the ids before and after a text.
    "llama": (llama_folder, {}, (START,), ()),
    "llama-fast": (llama_folder, {"tokenizer_class": "LlamaTokenizerFast"}, (START,), ()),
    "none": (llama_folder, {"processor": BYTES}, (), ()),
    "asked-in-vain": (llama_folder, {"processor": None, "add_bos_token": True}, (), ()),
    "refused-in-vain": (llama_folder, {"add_bos_token": False}, (START,), ()),
    "gpt2": (gpt2_folder, {}, (), ()),
    "gpt2-start": (gpt2_folder, {"add_bos_token": True}, (27,), ()),
    "gpt2-other-start": (gpt2_folder, {"add_bos_token": True, "bos_token": "<s>"}, (0,), ()),
    "bert": (bert_folder, {}, (2,), (3,)),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_prefix_is_what_transformers_puts_before_a_text(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    make, options, before, after = FOLDERS[name]
    ours = Tokenizer.load(make(tmp_path, **options))
    assert ours.prefix == before
    assert ours.begin_of_text == (before[0] if before else ours.end_of_text)
    assert set(before) <= ours.special_ids
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").prefix == before
    for folder in (tmp_path, tmp_path / "saved"):
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("leaf", "a", ""):
            assert theirs(text)["input_ids"] == [*before, *ours.encode(text), *after]


@pytest.mark.parametrize(
    "processor",
    [
        None,
        BYTES,
        TEMPLATE,
        processors.TemplateProcessing(single="$A </s>", pair="$A $B", special_tokens=[("</s>", END)]),
        processors.TemplateProcessing(
            single=["<s>", "both", "$A", "</s>"],
            pair=["$A", "$B"],
            special_tokens=[("<s>", START), ("</s>", END), {"id": "both", "ids": [3, 2], "tokens": ["<pad>", "</s>"]}],
        ),
        processors.BertProcessing(("</s>", END), ("<s>", START)),
        processors.RobertaProcessing(("</s>", END), ("<s>", START)),
        processors.Sequence([BYTES, TEMPLATE]),
        processors.Sequence([TEMPLATE, BYTES, processors.BertProcessing(("</s>", END), ("<pad>", 3))]),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_every_processor_is_read_as_the_library_runs_it(processor: Any) -> None:
    made = backend(processor)
    ids = made.encode("leaf").ids
    start = ids.index(made.token_to_id("l"))
    assert prefix_of(made) == tuple(ids[:start])


def test_tokenizers_of_ours_have_none(build: Callable[[str], Tokenizer]) -> None:
    for name in ("byte", "char", "bpe", "gpt2"):
        assert build(name).prefix == ()
        assert build(name).begin_of_text == build(name).end_of_text


def test_a_prefix_that_the_vocabulary_lacks_is_refused(tmp_path: Path) -> None:
    strange = processors.TemplateProcessing(single="<s> $A", pair="$A $B", special_tokens=[("<s>", 32_000)])
    with pytest.raises(UserError, match=r"tokenizer\.json: its post_processor puts id 32000 before texts, but .* 32 "):
        Tokenizer.load(llama_folder(tmp_path, strange))


# --- corpora -----------------------------------------------------------------------------------------------------


def corpus(tmp_path: Path, rows: list[dict[str, str]], folder: Path | None = None, **options: Any) -> Corpus:
    file = tmp_path / "rows.jsonl"
    if not file.exists():  # a time of change would make another corpus
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"name": "jsonl", "files": (str(file),), "prepared_dir": str(tmp_path / "prepared"), **options}
    tokenizer = TokenizerConfig(name="huggingface", path=str(folder or llama_folder(tmp_path / "llama")))
    return prepare(DataConfig(**options), tokenizer)


def everything(stream: TokenStream) -> list[int]:
    return stream.read(0, len(stream)).tolist()


@pytest.mark.parametrize("workers", [1, 2])
def test_each_document_starts_with_it_however_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 7)
    monkeypatch.setattr(parallel_encoding, "BATCH_CHARACTERS", 40)
    texts = [f"{letter * (3 * i)} {'x' * i}\ny <s>" for i, letter in enumerate(LETTERS[:20])]
    made = corpus(tmp_path, [{"text": text} for text in texts], val_fraction=0.3, workers=workers)
    encode, found = made.tokenizer.encode, []
    for split in (made.train, made.val):
        ids = everything(split)
        assert ids[0] == END
        here = [text for text in texts if split.n_documents and _holds(ids, [START, *encode(text), END])]
        assert ids == [END] + [token for text in here for token in (START, *encode(text), END)]
        found += here
    assert sorted(found) == sorted(texts)


def _holds(ids: list[int], part: list[int]) -> bool:
    return any(ids[start : start + len(part)] == part for start in range(len(ids)))


def test_both_sides_of_a_single_document_start_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 7)
    text = "".join(LETTERS[i % 26] for i in range(100))
    made = corpus(tmp_path, [{"text": text}])
    encode = made.tokenizer.encode
    assert everything(made.train) == [END, START, *encode(text[:90])]
    assert everything(made.val) == [END, START, *encode(text[90:]), END]


def test_prompts_of_pairs_count_it(tmp_path: Path) -> None:
    rows = [{"q": question, "a": answer} for question in ("leaf", "", "a b") for answer in ("x", "yes")]
    made = corpus(tmp_path, rows, name="pairs", prompt="{q}", completion="{a}", val_fraction=0.3)
    encode, found = made.tokenizer.encode, []
    for split in (made.train, made.val):
        assert isinstance(split, PairStream)
        found += list(split.pairs())
        assert split.completion_tokens == sum(len(completion) + 1 for _, completion in split.pairs())
        tokens = [token for prompt, completion in split.pairs() for token in (*prompt, *completion, END)]
        assert everything(split) == [END, *tokens]
    assert sorted(found) == sorted(([START, *encode(row["q"])], encode(row["a"])) for row in rows)


def test_a_corpus_prepared_without_it_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": letter} for letter in "abcdefgh"]
    with monkeypatch.context() as earlier:
        earlier.setattr(our_tokenizers, "prefix_of", lambda backend: ())
        old = corpus(tmp_path, rows)
    new = corpus(tmp_path, rows)
    assert (START in everything(old.train), START in everything(new.train)) == (False, True)
    plain = llama_folder(tmp_path / "plain", None)
    assert len({made.folder for made in (old, new, corpus(tmp_path, rows, plain))}) == 3


def test_wordpieces_are_read_with_their_own_start(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path)
    made = corpus(tmp_path, [{"text": "leaf"}, {"text": "leaf leaf"}], folder, val_fraction=0.5)
    both = [everything(split) for split in (made.train, made.val)]
    assert sorted(both, key=len) == [[3, 2, 4, 3], [3, 2, 4, 4, 3]]
