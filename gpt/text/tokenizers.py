"""Text ↔ ids, for every kind of tokenizer: one class around a Hugging Face tokenizer.json.

A tokenizer is a folder with `tokenizer.json` (the whole of it) and `tokenizer_config.json` (which token ends a text),
as https://huggingface.co/docs/tokenizers writes them, so transformers loads ours and we load theirs. The kind and its
fast path (`encoders.py`) are recognised from tokenizer.json itself; nothing in such a folder is ever executed.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tokenizers

from gpt.options import UserError
from gpt.text.encoders import (
    BYTE_OF,
    CHARACTER_SPLIT,
    Encoder,
    check_unicode,
    fast_encoder,
    is_bytes,
    lengths_of,
    refusing,
    utf8,
    word_pattern,
)
from gpt.text.released import build_released, prefix_of, read_json, special_tokens

END_OF_TEXT = "<|endoftext|>"
MOST_TOKENS = 10**7
CANNOT_ENCODE = "the tokenizer cannot encode the text; it may lack a token for what it does not know"
_USUAL_ENDS = (END_OF_TEXT, "</s>", "[SEP]")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece vocabularies spell a byte
_FAST_FROM = 2000  # characters: below, building the fast path takes longer than it saves


class StreamDecoder(Protocol):
    """Turns ids into text one at a time. What `step` and `finish` return adds up to `decode` of all ids."""

    def step(self, token: int) -> str:
        """The text that is certain now that `token` has come; "" within a character."""

    def finish(self) -> str:
        """The rest, once no more ids come."""

    def fork(self) -> StreamDecoder:
        """One that has seen the same ids, and goes its own way from here."""


class Tokenizer:
    """Text to ids and back.

    `name` is byte, char, bpe, gpt2 or huggingface; ids are 0 … `vocab_size` - 1, special tokens included;
    `end_of_text` is the id that separates documents; `prefix` are the ids that the tokenizer wants before each text
    (Llama's <s>, BERT's [CLS]), none for those that we make; `dtype` is the narrowest type that holds every id.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text: str, config: dict[str, Any] | None = None):
        """`end_of_text`: the token's text. `config`: a stranger's tokenizer_config.json, which `save` keeps."""
        backend.no_truncation()
        backend.no_padding()
        # What is in a corpus is text: a literal "<|endoftext|>" there must not end a document.
        backend.encode_special_tokens = True
        self.backend = backend
        self._spec: dict[str, Any] = json.loads(backend.to_str())
        self._config = config
        self.end_of_text_token = end_of_text
        vocab = backend.get_vocab(with_added_tokens=True)
        self.end_of_text = vocab[end_of_text]
        self.vocab_size = max(vocab.values()) + 1
        self.prefix = prefix_of(backend)
        self.special_ids = frozenset(
            {token["id"] for token in self._spec["added_tokens"] if token["special"]} | {self.end_of_text, *self.prefix}
        )
        self.dtype = np.dtype("<u2") if self.vocab_size <= 2**16 else np.dtype("<u4")
        self.name = _kind(self._spec, self.vocab_size)

    @property
    def begin_of_text(self) -> int:
        """The id that stands before a text: the first of `prefix`, else the end of the text before."""
        return self.prefix[0] if self.prefix else self.end_of_text

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the canonical tokenizer.json."""
        canonical = json.dumps(self._spec, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode("utf-8"), digest_size=16).hexdigest()

    @cached_property
    def _fast(self) -> Encoder | None:
        with refusing("tokenizer.json cannot be used"):
            return fast_encoder(self._spec, self.backend)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, with nothing added, not even `prefix`; special tokens spelled out in it are plain text.

        Raises UserError where the text has a lone surrogate, or characters that a char tokenizer has never seen.
        """
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, each as `encode`, one after another: [n_tokens] of `dtype`; and how many each has."""
        if self._fast is not None:
            ids, lengths = self._fast(texts)
            return ids.astype(self.dtype, copy=False), lengths
        check_unicode(texts)
        with refusing(CANNOT_ENCODE):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        parts = [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]
        return np.concatenate([np.zeros(0, self.dtype), *parts]), lengths_of(parts)

    def _encode(self, text: str) -> np.ndarray:
        if (len(text) > _FAST_FROM or self.name in ("byte", "char")) and self._fast is not None:
            return self._fast([text])[0]
        utf8(text)
        with refusing(CANNOT_ENCODE):
            return np.array(self.backend.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`: special tokens are skipped, bytes that are no UTF-8 become U+FFFD."""
        pieces = self._pieces
        if pieces is None:
            with refusing("the tokenizer cannot decode its tokens; mend the decoder in tokenizer.json"):
                return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)
        return b"".join([pieces[i] for i in ids]).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder that gives out text as ids come, and never half a character."""
        return _ByteStream(self._pieces) if self._pieces is not None else _WindowStream(self)

    @cached_property
    def _pieces(self) -> list[bytes] | None:
        """The bytes of each id where decoding only joins them, else None."""
        decoder = (self._spec["decoder"] or {}).get("type")
        if decoder not in ("ByteLevel", "Fuse"):
            return None
        pieces = [b""] * self.vocab_size
        for token, index in self.backend.get_vocab(with_added_tokens=True).items():
            if index in self.special_ids:
                continue
            if decoder == "ByteLevel" and all(character in BYTE_OF for character in token):
                pieces[index] = bytes(BYTE_OF[character] for character in token)
            else:
                pieces[index] = token.encode("utf-8")
        return pieces

    @cached_property
    def token_bytes(self) -> np.ndarray | None:
        """int32 [vocab_size]: UTF-8 bytes of each id's text, 0 for special ones; None where context decides."""
        return None if self._pieces is None else np.array([len(piece) for piece in self._pieces], dtype=np.int32)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer reads too."""
        folder.mkdir(parents=True, exist_ok=True)
        # Not backend.save, which reports a full disk as a plain Exception.
        (folder / "tokenizer.json").write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        config = self._config or {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.end_of_text_token,
            "eos_token": self.end_of_text_token,
            "unk_token": self.end_of_text_token,  # as GPT-2's own, without which CTranslate2 opens no converted model
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config, indent=2) + "\n",
            encoding="utf-8",  # in ASCII, as a stranger's may hold half a surrogate pair
        )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Load a folder with tokenizer.json, ours or a stranger's, or the file itself.

        A folder without one may have what came before it (`released.py`). Raises UserError where there is neither,
        where it cannot be read, where no token ends a text, or where it puts an id before texts that it has not.
        """
        folder = path if path.is_dir() else path.parent
        file = path / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            with refusing(f"{file}: not a tokenizer.json of the tokenizers library"):
                backend = tokenizers.Tokenizer.from_file(str(file))
        elif path.is_dir():
            backend = build_released(path)
        else:
            raise UserError(f"{path}: no tokenizer.json there; give a folder that contains one, or the file itself")
        _check_ids(folder, backend)
        token = _end_of_text(folder, backend)
        config = _without_code(read_json(folder / "tokenizer_config.json"), token)
        with refusing(f"{file}: not a tokenizer.json of the tokenizers library"):
            tokenizer = cls(backend, token, config)
        if unknown := [index for index in tokenizer.prefix if index >= tokenizer.vocab_size]:
            raise UserError(
                f"{file}: its post_processor puts id {unknown[0]} before texts, but there are only "
                f"{tokenizer.vocab_size} tokens; mend the ids there"
            )
        return tokenizer


def _check_ids(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """Raises UserError where there are no tokens, or one has an id for which no table has room: the library itself
    lists every id below it that is not used."""
    largest = max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
    if not 0 <= largest < MOST_TOKENS:
        held = f"the ids of its tokens go up to {largest:,}" if largest >= 0 else "it has no tokens"
        raise UserError(
            f"{folder}: {held}, and a tokenizer has 1 to {MOST_TOKENS:,} tokens, numbered from 0 on; mend its files"
        )


def _end_of_text(folder: Path, backend: tokenizers.Tokenizer) -> str:
    """The token that ends a text: named by the tokenizer, by the model beside it, or usual. Raises UserError."""
    index = read_json(folder / "config.json").get("eos_token_id")
    index = index[0] if isinstance(index, list) and index else index
    by_model = backend.id_to_token(index) if type(index) is int and 0 <= index < 2**32 else None
    for token in (special_tokens(folder).get("eos_token"), by_model, *_USUAL_ENDS):
        if token and backend.token_to_id(token) is not None:
            return token
    raise UserError(
        f"{folder}: no token ends a text; name one of its tokens as eos_token in {folder}/tokenizer_config.json"
    )


def _without_code(config: dict[str, Any], end_of_text: str) -> dict[str, Any] | None:
    """A stranger's tokenizer_config.json as we pass it on: with an end of text, without pointers to their code."""
    kept = {key: value for key, value in config.items() if key != "auto_map"}
    return {**kept, "eos_token": end_of_text} if kept else None


def _kind(spec: dict[str, Any], vocab_size: int) -> str:
    """The kind of tokenizer that a parsed tokenizer.json describes."""
    if spec["model"]["type"] == "WordLevel" and spec["pre_tokenizer"] == CHARACTER_SPLIT:
        return "char"
    if spec["model"]["type"] != "BPE" or spec["normalizer"]:
        return "huggingface"
    if is_bytes(spec):
        return "byte"
    pattern = word_pattern(spec)
    if pattern == "gpt2" and vocab_size == 50257:
        return "gpt2"
    return "bpe" if pattern == "newleaf" else "huggingface"


class _ByteStream:
    """Streams tokens that stand for bytes."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def step(self, token: int) -> str:
        return self.decoder.decode(self.pieces[token])

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)

    def fork(self) -> _ByteStream:
        twin = _ByteStream(self.pieces)
        twin.decoder.setstate(self.decoder.getstate())
        return twin


class _WindowStream:
    """Streams tokens whose text depends on their neighbours, such as WordPiece's and SentencePiece's.

    Each step decodes a window of the last tokens with and without the new one. Text waits while it ends in the middle
    of a run of byte tokens, as one bad byte makes the library replace the whole run.
    """

    KEEP = 8  # tokens of context before the new ones, enough for any decoder's view of its neighbours

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.window: list[int] = []  # context, then tokens whose text is not out yet
        self.context = 0  # tokens at the window's head whose text is out

    def step(self, token: int) -> str:
        if token in self.tokenizer.special_ids:
            return ""  # decode skips it too, and it must not push context out of the window
        self.window.append(token)
        spelled = self.tokenizer.backend.id_to_token(token)
        if spelled is None or _BYTE_TOKEN.fullmatch(spelled):
            return ""
        return self.finish()

    def finish(self) -> str:
        before = self.tokenizer.decode(self.window[: self.context])
        text = self.tokenizer.decode(self.window)
        self.context = len(self.window)
        if self.context > 2 * self.KEEP:
            self.window = self.window[-self.KEEP :]
            self.context = self.KEEP
        return text[len(before) :]

    def fork(self) -> _WindowStream:
        twin = _WindowStream(self.tokenizer)
        twin.window, twin.context = list(self.window), self.context
        return twin
