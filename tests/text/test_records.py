"""JSON arrays of objects, against Python's own parser of the whole, and against the same objects a line each."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from odd_texts import ODD

from gpt.config import DataConfig, TokenizerConfig
from gpt.options import UserError
from gpt.text import records, spans
from gpt.text.records import read_json
from gpt.text.shards import prepare
from gpt.text.spans import Span


def objects(count: int) -> list[dict[str, Any]]:
    chance = random.Random(count)
    values = [*ODD, "", '"', "\\", "]},{", "[", -1.5e300, 123456789, 0, True, None, float("-inf"), ["a", {"b": []}]]
    return [
        {f"f{chance.randrange(9)}": chance.choice(values) for _ in range(chance.randrange(6))} for _ in range(count)
    ]


@pytest.mark.parametrize("read_bytes", [4, 5, 7, 50, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}])
@pytest.mark.parametrize("around", ["{}", "\ufeff {}\n\n", "\r\n\t{} "])
def test_an_array_is_what_the_parser_of_the_whole_says(
    around: str, layout: dict[str, Any], read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spans, "READ_BYTES", read_bytes)
    for count in (0, 1, 40):
        path = tmp_path / f"{count}.json"
        path.write_text(around.format(json.dumps(objects(count), **layout)), encoding="utf-8")
        found = list(read_json([Span(path)]))
        assert [record for _, record in found] == json.loads(path.read_text(encoding="utf-8-sig"))
        assert [str(place) for place, _ in found] == [f"{path}: object {n + 1} of the array" for n in range(count)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}', "object 1 of the array: a comma or ] must follow, not ''"),
        ('[{"a": 1},', "object 2 of the array: not JSON (Expecting value)"),
        ('[{"a": 1},]', "object 2 of the array: not JSON (Expecting value)"),
        ("[", "object 1 of the array: not JSON (Expecting value)"),
        ('[{"a": "never ends}]', "object 1 of the array: not JSON (Unterminated string starting at)"),
        ('[{"a": 1} {"a": 2}]', "object 1 of the array: a comma or ] must follow, not '{'"),
        ('[{"a": 1}, 5]', "object 2 of the array: int, not an object"),
        ('[{"a": 1}, {"a" 2}]', "object 2 of the array: not JSON (Expecting ':' delimiter)"),
        ('[{"a": 1}] {"a": 2}', "'{' follows the end of the array"),
        ('[{"a": ' + "[" * 10_000 + "1", "object 1 of the array: not JSON (maximum recursion depth"),
        ('[{"a": ' + "9" * 5000 + "}]", "object 1 of the array: not JSON (Exceeds the limit"),
    ],
)
def test_what_is_no_array_of_objects_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        list(read_json([Span(path)]))
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["text", "jsonl", "pairs"])
def test_what_is_compressed_is_to_be_unpacked(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n'))
    pair = {"prompt": "{q}", "completion": "{a}"} if name == "pairs" else {}
    data = DataConfig(name=name, files=(str(path),), prepared_dir=str(tmp_path / "made"), **pair)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"a\.jsonl: compressed; unpack it first \(gunzip\)"):
        prepare(data, TokenizerConfig(name="byte"))


def test_an_error_in_a_large_array_is_seen_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"a": nothing}, ' + ", ".join(['{"a": "' + 1000 * "x" + '"}'] * 30_000) + "]", encoding="utf-8")
    tracemalloc.start()
    with pytest.raises(UserError, match="Expecting value"):
        next(read_json([Span(path)]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_an_array_takes_no_more_memory_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": str(n) * 200} for n in range(30_000)]), encoding="utf-8")
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    assert sum(1 for _ in read_json([Span(path)])) == 30_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


@pytest.mark.parametrize("limit", [10, 10**9])
def test_a_string_without_an_end_is_not_sought_for_ever(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "LARGEST_ELEMENT", limit)
    monkeypatch.setattr(spans, "READ_BYTES", 100)
    path = tmp_path / "a.json"
    path.write_text('[{"a": "' + "x" * 10_000, encoding="utf-8")
    text = records._Text(Span(path))
    text.take("[")
    with pytest.raises(UserError, match="Unterminated"):
        text.value("here")
    assert (len(text.held) < 500) == (limit == 10)


@pytest.mark.parametrize("name", ["jsonl", "pairs"])
def test_a_corpus_of_arrays_is_that_of_the_same_lines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where other files are cut into parts: an array is not."""
    monkeypatch.setattr(spans, "PART_BYTES", 2000)
    poems = [{"title": f"第{n}首", "lines": [f"月滿西樓{n}", "雲中誰寄"]} for n in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(poems, indent=2), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(poem) + "\n" for poem in poems), encoding="utf-8")
    made = []
    for file in ("a.json", "a.jsonl"):
        options = (
            {"template": "{title}\n{lines}"} if name == "jsonl" else {"prompt": "{title}\n", "completion": "{lines}"}
        )
        data = DataConfig(
            name=name, files=(str(tmp_path / file),), prepared_dir=str(tmp_path / file[1:]), **options  # type: ignore[arg-type]
        )  # fmt: skip
        made.append(prepare(data, TokenizerConfig(name="byte")))
    assert made[0].fingerprint == made[1].fingerprint
    text = made[0].tokenizer.decode(made[0].train.read(0, 200))
    assert "\n月滿西樓" in text
    assert "\n雲中誰寄" in text
    assert "[" not in text
