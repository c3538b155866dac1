"""Options that are right alone: combinations, devices, sweeps."""

from __future__ import annotations

from tests.faults.bad_inputs import Case, bad

COMBINATIONS = [
    bad("heads that do not fit", "train", "model.n_embd=17", says=["model.n_embd=17", "multiple of n_head=2"]),
    bad("odd heads with rotation", "train", "model.head_dim=3", says=["model.head_dim=3", "must be even"]),
    bad(
        "key heads that do not divide", "train", "model.n_kv_head=3", says=["model.n_kv_head=3", "must divide n_head=2"]
    ),
    bad(
        "rotation in gpt2",
        "train",
        "model.dialect=gpt2",
        "model.positions=rotary",
        says=["positions=rotary", "use learned"],
    ),
    bad(
        "grouped queries in gpt2", "train", "model.dialect=gpt2", "model.n_kv_head=1", says=["n_kv_head=1", "use llama"]
    ),
    bad(
        "a stretch without scaling", "train", "model.rope_factor=2", says=["rope_factor=2.0", "choose linear or llama3"]
    ),
    bad(
        "a vocabulary for bytes",
        "train",
        "tokenizer.vocab_size=300",
        says=["tokenizer.vocab_size=300", "only for tokenizer=bpe"],
    ),
    bad("adapters on nothing", "train", "lora.rank=4", says=["lora.rank=4", "name them with init_from"]),
    bad("adapters of nothing", "train", "lora.alpha=4", says=["lora.alpha=4.0", "set lora.rank=8"]),
    bad(
        "an unknown matrix",
        "train",
        "init_from=model",
        "lora.rank=2",
        "lora.targets=[q]",
        says=["lora.targets=[q]", "choose"],
    ),
    bad(
        "a rank beyond the matrix",
        "train",
        "init_from=model",
        "lora.rank=99",
        "-tokenizer",
        *(f"-model.{n}" for n in ("n_layer", "n_head", "n_embd", "context_length")),
        says=["lora.rank=99", "a usual value is 8"],
    ),
    bad(
        "another width than the weights",
        "train",
        "init_from=model",
        "model.n_embd=32",
        "-tokenizer",
        says=["model.n_embd=32", "leave out the option"],
    ),
    bad(
        "another tokenizer than the weights",
        "train",
        "init_from=model",
        "tokenizer=char",
        says=["tokenizer=char", "leave out the option"],
    ),
    bad("a column of text files", "train", "data.column=text", says=["data.column=text", "only for data=huggingface"]),
    bad("a template for text files", "train", "data.template={a}", says=["data.template={a}", "only for data=jsonl"]),
    bad(
        "paragraphs of JSONL",
        "train",
        "data=jsonl",
        "data.documents=blank_line",
        says=["documents=blank_line", "data=text"],
    ),
    bad(
        "files for the library",
        "train",
        "data=stdlib",
        "data.files=[book.txt]",
        says=["data.files=[book.txt]", "use data=text"],
    ),
    bad(
        "held-out files alone",
        "train",
        "-data.files",
        "data.val_files=[book.txt]",
        says=["data.val_files", "needs data.files"],
    ),
    bad("text without files", "train", "-data.files", says=["data.files=[]", "data.files='[book.txt"]),
    bad(
        "a tokenizer without a path",
        "train",
        "tokenizer=huggingface",
        says=["tokenizer.path", "FILE (a tokenizer.json)"],
    ),
    bad(
        "a path without a tokenizer",
        "train",
        "tokenizer.path=model",
        says=["tokenizer.path=model", "tokenizer=huggingface"],
    ),
    bad("pairs without a prompt", "train", "data=pairs", "data.completion={a}", says=["data.prompt", "{question}"]),
    bad("a Hub id and files", "train", "data=huggingface", "data.path=a/b", says=["data.path=a/b", "either data.path"]),
    bad("beams that sample", "sample", "num_beams=2", "top_k=5", says=["top_k=5", "leave it out"]),
    bad("more samples than beams", "sample", "num_beams=2", "num_samples=3", says=["num_samples=3", "raise num_beams"]),
    bad("beams beyond the batch", "sample", "num_beams=4", "batch_size=2", says=["num_beams=4", "raise it"]),
    bad("a penalty without beams", "sample", "length_penalty=2", says=["length_penalty=2.0", "num_beams=4"]),
    bad("an empty stop", "sample", "stop=", says=["stop=", "leave out the option"]),
    bad("two kinds of prompt", "sample", "prompt=a", "prompt_file=book.txt", says=["prompt_file=book.txt", "not both"]),
    bad("a file in a dialogue", "sample", "interactive=true", "output=x", says=["output=x", "interactive=true"]),
    bad(
        "integers in halves",
        "sample",
        "quantize=int8",
        "precision=bf16",
        says=["quantize=int8", "leave out precision=bf16"],
    ),
    bad("a matrix too small for int4", "sample", "quantize=int4", says=["quantize=int4", "use quantize=int8"]),
    bad(
        "a draft of what is rounded",
        "sample",
        "draft=int8",
        "quantize=int8",
        says=["draft=int8", "leave out quantize=int8"],
    ),
    bad("a draft of too small a matrix", "sample", "draft=int4", says=["draft=int4", "use draft=int8"]),
    bad("a stop for plain text", "evaluate", "stop=x", says=["stop=[x]", "only for data=pairs"]),
    bad("no checkpoint", "sample", "-checkpoint", says=["checkpoint=", "is missing; give a run"]),
    bad("no output", "export", "-output", says=["output=", "name the folder"]),
]

DEVICES = [
    bad("an unknown device", "train", "train.device=gpu", says=["train.device=gpu", "auto, cpu, cuda, cuda:N, mps"]),
    bad("a device without a number", "sample", "device=cuda:", says=["device=cuda:", "auto, cpu, cuda, cuda:N, mps"]),
    bad(
        "a device that is not here",
        "sample",
        "device=cuda:77",
        says=["device=cuda:77", "use device=auto or device=cpu"],
    ),
    bad("a device numbered in Arabic", "train", "train.device=cuda:٧", says=["device=cuda:٧", "device=auto"]),
    bad("halves on the processor", "train", "train.precision=fp16", says=["precision=fp16", "use bf16 or fp32"]),
]

SWEEPS = [
    bad("several values", "train", "seed=1,2", says=["seed=1,2", "add --multirun"]),
    bad("a choice of values", "train", "seed=choice(1,2)", says=["seed=choice(1,2)", "add --multirun"]),
    bad("endless values", "train", "seed=range(0,1000000000000)", says=["seed=range(", "give one"]),
    bad("steps of nothing", "train", "seed=range(1,2,0)", says=["seed=range(1,2,0)", "give one"]),
    bad("an endless sweep", "train", "--multirun", "seed=range(0,1e12)", says=["seed=range(", "at most 1000 values"]),
    bad(
        "too many runs",
        "train",
        "--multirun",
        "seed=range(0,99)",
        "train.max_steps=range(1,99)",
        says=["1000 runs", "fewer"],
    ),
    bad("a sweep of one", "train", "--multirun", says=["--multirun", "optimizer.lr=3e-4,1e-3"]),
    bad("a sweep of samples", "sample", "--multirun", "seed=1,2", says=["--multirun", "only train.py has runs"]),
    bad("a mistake in a sweep", "train", "--multirun", "seed=1,x", says=["seed=x", "is not a whole number"]),
]

CASES: list[Case] = [*COMBINATIONS, *DEVICES, *SWEEPS]
