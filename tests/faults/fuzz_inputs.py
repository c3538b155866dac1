"""Strategies for hostile input: JSON that is nearly right, files with bytes changed, text of odd characters."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[Any, ...]  # the keys and indexes that lead to a node

ODD_TEXTS = [
    "", " ", "x", "\ud800", "a\0b", "\n", "../x", "/", "/dev/zero", "~nobody/x", "%s", "{text}", "{text.__class__}",
    "{0}", "{", "}}", "<|endoftext|>", "葉", "\U0001f600", "x" * 5000, "null", "1e400", "nan", "-1",
]  # fmt: skip
ODD_NUMBERS = [
    0, -1, 1, 2, 7, 255, 256, 257, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64, -(2**63), 10**30,
    10**400, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
leaves = st.none() | st.booleans() | st.sampled_from(ODD_NUMBERS) | texts
json_values: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def dumped(value: Any) -> str:
    """JSON in ASCII, so that lone surrogates are escapes."""
    return json.dumps(value)


def nodes(value: Any, path: Path = ()) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for key, inner in list(value.items())[:30]:  # of a vocabulary so many are enough
            yield from nodes(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:20]):
            yield from nodes(inner, (*path, index))


@st.composite
def mutated(draw: st.DrawFn, valid: Any, favourites: tuple[Any, ...] = ()) -> Any:
    """`valid` JSON with one to three nodes replaced, deleted, moved or added. `favourites`: values to try often."""
    value = copy.deepcopy(valid)
    values = json_values | st.sampled_from(favourites) if favourites else json_values
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(nodes(value))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return copy.deepcopy(draw(values))
            if isinstance(value, dict):
                value[draw(texts)] = copy.deepcopy(draw(values))
            continue
        place = value
        for step in path[:-1]:
            place = place[step]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "delete", "move", "add"]))
        if kind == "replace":
            place[path[-1]] = copy.deepcopy(draw(values))
        elif kind == "delete":
            del place[path[-1]]
        elif kind == "move":
            place[path[-1]] = copy.deepcopy(at(value, draw(st.sampled_from(list(nodes(value))))))
        elif isinstance(place[path[-1]], dict):
            place[path[-1]][draw(texts)] = copy.deepcopy(draw(values))
        elif isinstance(place[path[-1]], list):
            place[path[-1]].insert(0, copy.deepcopy(draw(values)))
    return value


def at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


@st.composite
def damaged(draw: st.DrawFn, valid: bytes, first: int | None = None) -> bytes:
    """`valid` bytes with a few changed, cut out or put in, of its `first` so many where given."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, max(0, min(len(data), first or len(data)) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "cut", "insert", "truncate"]))
        if kind == "flip" and data:
            data[where] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            part = draw(st.binary(min_size=1, max_size=8))
            data[where : where + len(part)] = part
        elif kind == "cut":
            del data[where : where + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[where:where] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "truncate":
            del data[where:]
    return bytes(data)


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    """A JSONL file, most of whose lines are records."""
    value = st.sampled_from(["leaf", "葉", ""]) | leaves
    record = st.fixed_dictionaries({"text": value, "prompt": value, "a": json_values, "b.c": texts})
    odd_line = json_values.map(lambda value: dumped(value).encode()) | st.binary(max_size=20)
    nested = st.sampled_from([10, 900, 99_999]).map(lambda n: b'{"text": ' + b"[" * n + b"]" * n + b"}")
    end = st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b""])
    lines = draw(st.lists(st.tuples(record.map(lambda value: dumped(value).encode()), end), max_size=4))
    if draw(st.integers(0, 2)) == 0:
        lines.insert(draw(st.integers(0, len(lines))), (draw(odd_line | nested), draw(end)))
    mark = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf", b"\xff\xfe"]))
    return mark + b"".join(line + end for line, end in lines)


good_templates = st.sampled_from(["{text}", "{prompt}\n", "{a}{text}", "{{x}} {b.c}", "葉{text}"])
odd_templates = st.lists(
    st.sampled_from(["{text}", "{a}", "{b.c}", "{", "}", "{{", "}}", "{}", "{text!r}", "{text:>99999999999}", "{0}"])
    | st.sampled_from(["{text.__class__}", "{text[0]}", "{a\\n}", "\\n", "x", "\ud800", "{{text}}", "{ text }"])
    | st.text(max_size=4),
    max_size=4,
).map("".join)
templates = good_templates | good_templates | good_templates | odd_templates


def command_lines(names: list[str]) -> st.SearchStrategy[list[str]]:
    """Arguments that use these names of options, and others."""
    grammar = st.sampled_from([
        "range(1,3)", "range(0,10**18)", "range(0,1000000000000)", "range(1,2,0)", "choice(1,2)", "1,2", "[1,2]",
        "{a:1}", "${seed}", "${oc.env:HOME}", "${", "$", "???", "'", '"', "[", "[" * 300, "a=b", "glob(*)",
        "shuffle(1,2)", "sort(3,2,1)", "extend_list(1)", "int('5')", "str(5)", "tag(a,1)", "interval(0,1)", "null",
        "true", "1_000", "0x10", "[book.txt,run]", "['a,b]", "**", "*", "?", "[a-", "run", "model", "adapter", "char",
        "text", "pairs", "byte",
    ])  # fmt: skip
    several = st.lists(grammar | texts, max_size=3).map(",".join)
    value = grammar | texts | st.sampled_from(ODD_NUMBERS).map(str) | several
    strange = st.sampled_from(["", "hydra.run.dir", "+a", "~data", "a", "data", "--x", "-", "data."])
    name = st.sampled_from(names) | st.sampled_from(names) | strange
    return st.lists(st.builds("{}={}".format, name, value) | texts, min_size=1, max_size=4)
