"""Wrong places: run folders, outputs, files of prompts."""

from __future__ import annotations

from tests.faults.bad_inputs import Case, bad
from tests.faults.spoil import fifo, link, write

CASES: list[Case] = [
    bad("a run that is a file", "train", "run_dir=book.txt", says=["run_dir=book.txt", "choose another run_dir"]),
    bad("a run under a file", "train", "run_dir=book.txt/run", says=["run_dir=book.txt/run", "choose another run_dir"]),
    bad("a run that is a device", "train", "run_dir=/dev/null", says=["run_dir=/dev/null", "choose another run_dir"]),
    bad("a run that is a model", "train", "run_dir=model", says=["run_dir=model", "choose another"]),
    bad(
        "a run that leads in a circle",
        "train",
        "run_dir=loop",
        says=["run_dir=loop", "choose another"],
        spoil=link("loop", "loop"),
    ),
    bad(
        "a run where nothing can be made",
        "train",
        "run_dir=/proc/run",
        says=["run_dir=/proc/run", "choose another run_dir"],
    ),
    bad(
        "a run of nobody's",
        "train",
        "run_dir=~nobody7/x",
        says=["run_dir=~nobody7/x", "no user of that name", "begin with ./~"],
    ),
    bad("a name of 300 letters", "train", "run_dir=" + "y" * 300, says=["File name too long", "check the path"]),
    bad("a run that is there", "train", "run_dir=run", "resume=never", says=["resume=never", "choose another run_dir"]),
    bad(
        "another model in a run",
        "train",
        "run_dir=run",
        "model.n_layer=2",
        says=["run_dir=run", "model.n_layer: 1 there, 2 now"],
    ),
    bad("another seed in a run", "train", "run_dir=run", "seed=7", says=["run_dir=run", "seed: 1337 there, 7 now"]),
    bad("another text in a run", "train", "run_dir=run", "data.files=[qa.jsonl]", says=["run_dir=run", "corpus"]),
    bad(
        "a corpus that goes into a file",
        "train",
        "data.prepared_dir=book.txt",
        says=["data.prepared_dir", "another folder"],
    ),
    bad("samples into a folder", "sample", "output=run", says=["output=run", "choose another file"]),
    bad("samples into no folder", "sample", "output=none/x", says=["output=none/x", "choose another file"]),
    bad("samples into a folder to be", "sample", "output=book.txt/", says=["output=book.txt/", "name a file in it"]),
    bad(
        "samples in a circle", "sample", "output=loop", says=["output=loop", "another file"], spoil=link("loop", "loop")
    ),
    bad("an export into a file", "export", "output=book.txt", says=["output=book.txt", "name a new folder"]),
    bad("an export into a run", "export", "output=run", says=["output=run", "name a new folder"]),
    bad(
        "an export among checkpoints",
        "export",
        "output=run/checkpoints/x",
        says=["output=run/checkpoints/x", "another folder"],
    ),
    bad(
        "an export through a link",
        "export",
        "output=l",
        says=["output=l", "name a new folder"],
        spoil=link("l", "model"),
    ),
    bad(
        "an export into a pipe", "export", "output=pipe", says=["output=pipe", "name a new folder"], spoil=fifo("pipe")
    ),
    bad("an export to here", "export", "output=.", says=["output=.", "name a new folder"]),
    bad("scores into a file", "evaluate", "output=book.txt", says=["output=book.txt", "choose another folder"]),
    bad("prompts that are not there", "sample", "prompt_file=none", says=["prompt_file=none", "No such file"]),
    bad("prompts in a folder", "sample", "prompt_file=run", says=["prompt_file=run", "Is a directory"]),
    bad("endless prompts", "sample", "prompt_file=/dev/zero", says=["prompt_file=/dev/zero", "not a text file"]),
    bad(
        "prompts in Latin-1", "sample", "prompt_file=p", says=["prompt_file=p", "iconv"], spoil=write("p", b"caf\xe9\n")
    ),
    bad(
        "no prompts",
        "sample",
        "prompt_file=p",
        says=["prompt_file=p", "write one on each line"],
        spoil=write("p", "\n\n"),
    ),
    bad(
        "prompts that are no JSON",
        "sample",
        "prompt_file=p.jsonl",
        says=["p.jsonl, line 2", '{"prompt": "…"}'],
        spoil=write("p.jsonl", '{"prompt": "a"}\nleaf\n'),
    ),
    bad(
        "prompts under another name",
        "sample",
        "prompt_file=p.jsonl",
        says=["p.jsonl, line 1", '{"prompt": "…"}'],
        spoil=write("p.jsonl", '{"text": "a"}\n'),
    ),
    bad(
        "prompts in a hundred thousand brackets",
        "sample",
        "prompt_file=p.jsonl",
        says=["p.jsonl, line 1", "not JSON"],
        spoil=write("p.jsonl", "[" * 100_000),
    ),
    bad(
        "half a character in a prompt",
        "sample",
        "prompt_file=p.jsonl",
        says=["p.jsonl, line 1", "leave it out"],
        spoil=write("p.jsonl", '{"prompt": "\\ud800"}\n'),
    ),
    bad(
        "a prompt of unseen characters",
        "sample",
        "checkpoint=char",
        "prompt=☃",
        says=["'☃' (U+2603)", "leave such characters"],
    ),
    bad(
        "a sample prompt of unseen characters",
        "train",
        "tokenizer=char",
        "train.sample_prompt=☃",
        says=["'☃'", "leave"],
    ),
]
