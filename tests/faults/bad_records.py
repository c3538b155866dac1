"""Wrong records: JSONL, templates, pairs, tables."""

from __future__ import annotations

import json

from tests.faults.bad_inputs import Case, bad
from tests.faults.lab import PAIRS
from tests.faults.spoil import write

JSONL = ("data=jsonl", "data.files=[x.jsonl]")
QA = ("data=pairs", "data.files=[x.jsonl]", "data.prompt={q}", "data.completion={a}")
HUB = ("data=huggingface", "-data.files")


def lines(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


RECORDS = [
    bad(
        "a line that is no JSON",
        "train",
        *JSONL,
        says=["x.jsonl:2", "not JSON", "one JSON object"],
        spoil=write("x.jsonl", lines('{"text": "a"}', "{text: b}")),
    ),
    bad(
        "a line that breaks off", "train", *JSONL, says=["x.jsonl:1", "not JSON"], spoil=write("x.jsonl", '{"text": "a')
    ),
    bad(
        "pretty-printed JSON",
        "train",
        *JSONL,
        says=["x.jsonl:1", "not JSON"],
        spoil=write("x.jsonl", '{\n "text": "a"\n}\n'),
    ),
    bad(
        "an array of texts",
        "train",
        *JSONL,
        says=["x.jsonl: object 1 of the array", "str, not an object"],
        spoil=write("x.jsonl", '["a", "b"]\n'),
    ),
    bad(
        "an array that breaks off",
        "train",
        *JSONL,
        says=["x.jsonl: object 2 of the array", "not JSON", "mend the file"],
        spoil=write("x.jsonl", '[{"text": "a"},\n {"text": "b'),
    ),
    bad("a number a line", "train", *JSONL, says=["x.jsonl:1", "int, not an object"], spoil=write("x.jsonl", "1\n2\n")),
    bad(
        "a field that is not there",
        "train",
        *JSONL,
        says=["x.jsonl:1", "no field 'text', only 'body'", "data.template"],
        spoil=write("x.jsonl", lines('{"body": "a"}')),
    ),
    bad(
        "a field that is there sometimes",
        "train",
        *JSONL,
        says=["x.jsonl:2", "no field 'text'"],
        spoil=write("x.jsonl", lines('{"text": "a"}', '{"txt": "b"}')),
    ),
    bad("an empty object", "train", *JSONL, says=["x.jsonl:1", "only none at all"], spoil=write("x.jsonl", "{}\n")),
    bad(
        "a hundred thousand brackets",
        "train",
        *JSONL,
        says=["x.jsonl:1", "not JSON"],
        spoil=write("x.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
    ),
    bad(
        "a number of 5,000 digits",
        "train",
        *JSONL,
        says=["x.jsonl:1", "not JSON"],
        spoil=write("x.jsonl", '{"text": ' + "9" * 5000 + "}"),
    ),
    bad(
        "half a character",
        "train",
        *JSONL,
        says=["x.jsonl:1", "half of a surrogate pair", "drop this record"],
        spoil=write("x.jsonl", lines('{"text": "\\ud800"}')),
    ),
    bad(
        "JSONL in Latin-1",
        "train",
        *JSONL,
        says=["x.jsonl:1", "byte 13 of the file", "UTF-8"],
        spoil=write("x.jsonl", b'{"text": "caf\xe9"}\n'),
    ),
    bad(
        "JSONL in UTF-16",
        "train",
        *JSONL,
        says=["x.jsonl:1", "not valid UTF-8"],
        spoil=write("x.jsonl", '{"text": "a"}'.encode("utf-16")),
    ),
    bad(
        "records without text",
        "train",
        *JSONL,
        says=["no text in x.jsonl"],
        spoil=write("x.jsonl", '{"text": null}\n{"text": ""}\n'),
    ),
    bad(
        "a template that never closes",
        "train",
        *JSONL,
        "data.template={text",
        says=["data.template", "'{'", "{{ or }}"],
        spoil=write("x.jsonl", "{}"),
    ),
    bad(
        "a template of a number",
        "train",
        *JSONL,
        "data.template={}",
        says=["data.template", "names no field"],
        spoil=write("x.jsonl", "{}"),
    ),
    bad(
        "a template without a field",
        "train",
        *JSONL,
        "data.template=text",
        says=["data.template", "uses no field", "{text}"],
        spoil=write("x.jsonl", "{}"),
    ),
    bad(
        "a template that looks inside",
        "train",
        *JSONL,
        "data.template={text.__class__}",
        says=["no field 'text.__class__'"],
        spoil=write("x.jsonl", lines('{"text": "a"}')),
    ),
    bad(
        "a template that indexes",
        "train",
        *JSONL,
        "data.template={text[0]}",
        says=["no field 'text[0]'"],
        spoil=write("x.jsonl", lines('{"text": "a"}')),
    ),
    bad(
        "a template of a gigabyte",
        "train",
        *JSONL,
        "data.template={text:>1000000000}",
        says=["no field 'text:>1000000000'"],
        spoil=write("x.jsonl", lines('{"text": "a"}')),
    ),
]

PAIR_CASES = [
    bad(
        "a pair without an answer",
        "train",
        *QA,
        says=["x.jsonl:2", "no field 'a'", "data.completion"],
        spoil=write("x.jsonl", lines('{"q": "x", "a": "y"}', '{"q": "x"}')),
    ),
    bad(
        "an empty answer",
        "train",
        *QA,
        says=["x.jsonl:1", "gives no text", "drop this record"],
        spoil=write("x.jsonl", lines('{"q": "x", "a": ""}')),
    ),
    bad(
        "a single pair",
        "train",
        *QA,
        says=["a single pair cannot be divided", "data.val_files"],
        spoil=write("x.jsonl", lines('{"q": "x", "a": "y"}')),
    ),
    bad(
        "the same prompt always",
        "train",
        *QA,
        says=["all 2 prompts are the same", "data.val_files"],
        spoil=write("x.jsonl", lines('{"q": "x", "a": "y"}', '{"q": "x", "a": "z"}')),
    ),
    bad(
        "prompts that fill the context",
        "train",
        *QA,
        says=["context_length=16", "prompts"],
        spoil=write("x.jsonl", lines(*(json.dumps({"q": f"{n}" * 99, "a": "y"}) for n in range(20)))),
    ),
    bad(
        "a completion without a field",
        "train",
        *QA[:3],
        "data.completion=yes",
        says=["data.completion", "uses no field"],
        spoil=write("x.jsonl", lines('{"q": "x"}')),
    ),
    bad("beams over plain text", "evaluate", "num_beams=2", says=["num_beams=2", "only for data=pairs"]),
    bad("overlapping pairs", "evaluate", *PAIRS[:4], "stride=4", says=["stride=4", "leave it out"]),
    bad(
        "pairs without completions",
        "evaluate",
        "data=pairs",
        "data.files=[qa.jsonl]",
        "data.prompt={question}",
        says=["data.completion", "data.completion='{answer}'"],
    ),
]

TABLES = [
    bad(
        "a picture as a table",
        "train",
        *HUB,
        "data.files=[x.png]",
        says=["x.png", ".parquet", "use data=text or data=jsonl"],
        spoil=write("x.png", b"\x89PNG"),
    ),
    bad(
        "a parquet that is none",
        "train",
        *HUB,
        "data.files=[x.parquet]",
        says=["x.parquet", "cannot be read", "check the file"],
        spoil=write("x.parquet", b"PAR1leafPAR1"),
    ),
    bad(
        "a table without the column",
        "train",
        *HUB,
        "data.files=[x.csv]",
        says=["x.csv row 1", "no field 'text', only 'a', 'b'"],
        spoil=write("x.csv", "a,b\n1,2\n"),
    ),
    bad(
        "a folder of code as a data set",
        "train",
        *HUB,
        "data.path=code",
        says=["data.path=code", "cannot be read", "local files"],
        spoil=write("code/code.py", "raise SystemExit(77)\n"),
    ),
    bad(
        "a data set without a network",
        "train",
        *HUB,
        "data.path=nobody/nothing",
        says=["data.path=nobody/nothing", "local files"],
    ),
]

CASES: list[Case] = [*RECORDS, *PAIR_CASES, *TABLES]
