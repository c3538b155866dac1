"""Options of text: tokenizers and corpora."""

from __future__ import annotations

from dataclasses import dataclass

from gpt.options import Mistake, Options, option

TOKENIZERS = ("byte", "char", "bpe", "gpt2", "huggingface")


@dataclass(frozen=True)
class TokenizerConfig(Options):
    """How text becomes tokens."""

    name: str = option(
        "bpe",
        "byte (256 tokens), char (one token a character), bpe (trained on the corpus), gpt2 (released), huggingface",
        choices=TOKENIZERS,
    )
    vocab_size: int | None = option(
        None,
        "tokens of a trained bpe, end of text included; null: chosen from the size and language",
        low=257,
        high=1e7,
    )
    path: str | None = option(None, "huggingface: a tokenizer.json, or a folder that contains one", free_text=True)

    def mistakes(self) -> list[Mistake]:
        found = []
        if self.vocab_size is not None and self.name != "bpe":
            found.append(Mistake("vocab_size", f"is only for tokenizer=bpe, not {self.name}"))
        if self.name == "huggingface" and not self.path:
            found.append(
                Mistake("path", "tokenizer=huggingface needs tokenizer.path=FILE (a tokenizer.json) or a folder")
            )
        if self.path is not None and self.name != "huggingface":
            found.append(Mistake("path", f"is only for tokenizer=huggingface, not {self.name}"))
        return found


SOURCES = ("stdlib", "text", "jsonl", "pairs", "huggingface", "shakespeare")


@dataclass(frozen=True)
class DataConfig(Options):
    """Where documents come from and how they are split."""

    name: str = option(
        "stdlib",
        "stdlib (Python's own source, nothing downloaded), text, jsonl (or a JSON array), pairs (the same, of prompts "
        "and completions), huggingface (Hub or local parquet, CSV, JSON), shakespeare (downloaded once)",
        choices=SOURCES,
    )
    files: tuple[str, ...] = option(
        (), "text, jsonl, pairs, local huggingface: files, folders or globs, as '[a.txt,notes/**/*.md]'", free_text=True
    )
    val_files: tuple[str, ...] = option(
        (), "held-out files, instead of splitting `files` by val_fraction", free_text=True
    )
    val_fraction: float = option(
        0.1,
        "share of the documents held out, by a hash of their text (of pairs: of the prompt); of one, or of a few long "
        "ones, the ends",
        above=0,
        below=1,
    )
    documents: str = option(
        "whole",
        "text: each file is one document (whole), or blank lines separate documents",
        choices=("whole", "blank_line"),
    )
    template: str = option(
        "{text}", "jsonl, huggingface: a document from the fields of a record", free_text=True, escapes=True
    )
    prompt: str = option(
        "", "pairs: the prompt, from the fields of a record; the loss does not count it", free_text=True, escapes=True
    )
    completion: str = option("", "pairs: what the model learns to write after the prompt", free_text=True, escapes=True)
    column: str | None = option(
        None, "huggingface: the column with the text, short for template={column}", free_text=True
    )
    path: str | None = option(None, "huggingface: id of a data set on the Hub, or a local folder", free_text=True)
    subset: str | None = option(None, "huggingface: configuration of the data set", free_text=True)
    split: str = option("train", "huggingface: split of the data set", free_text=True)
    prepared_dir: str = option("", "where token shards are kept; empty: data/prepared", free_text=True)
    workers: int = option(0, "threads that tokenize; 0: one for each core", low=0, high=1024)

    def mistakes(self) -> list[Mistake]:
        found = []
        takes_files = self.name in ("text", "jsonl", "pairs", "huggingface")
        if self.files and not takes_files:
            found.append(
                Mistake("files", f"data={self.name} takes no files; use data=text, jsonl, pairs or huggingface")
            )
        if self.val_files and not self.files:
            found.append(Mistake("val_files", "needs data.files as well"))
        if self.name in ("text", "jsonl", "pairs") and not self.files:
            example = "[qa.jsonl]" if self.name == "pairs" else "[book.txt,notes/**/*.md]"
            found.append(Mistake("files", f"data={self.name} needs data.files, as data.files='{example}'"))
        if self.name == "huggingface" and bool(self.files) == bool(self.path):
            found.append(
                Mistake("path", "data=huggingface needs either data.path (a Hub id) or data.files (local files)")
            )
        if self.name != "huggingface":
            for name in ("column", "path", "subset"):
                if getattr(self, name) is not None:
                    found.append(Mistake(name, f"is only for data=huggingface, not {self.name}"))
        if self.name not in ("jsonl", "huggingface") and self.template != "{text}":
            found.append(Mistake("template", f"is only for data=jsonl or huggingface, not {self.name}"))
        found += self._mistakes_of_pairs()
        if self.column is not None and self.template != "{text}":
            found.append(Mistake("column", "give data.column or data.template, not both"))
        if self.name != "text" and self.documents != "whole":
            found.append(Mistake("documents", f"is only for data=text, not {self.name}"))
        return found

    def _mistakes_of_pairs(self) -> list[Mistake]:
        given = {"prompt": self.prompt, "completion": self.completion}
        if self.name != "pairs":
            return [Mistake(name, f"is only for data=pairs, not {self.name}") for name, text in given.items() if text]
        ways = {
            "prompt": r"data=pairs needs data.prompt='{question}\n', or other fields; data=jsonl takes text alone",
            "completion": "data=pairs needs data.completion='{answer}', or other fields",
        }
        return [Mistake(name, ways[name]) for name, text in given.items() if not text]
