"""Wrong options: names, types, ranges, combinations, lists, sweeps, and what a shell may pass."""

from __future__ import annotations

from tests.faults.bad_inputs import Case, bad

DEEP = "[" * 500 + "]" * 500

NAMES = [
    bad("a word", "train", "resume", says=["resume", "name=value", "did you mean resume=value"]),
    bad("a flag", "train", "--lr=1", says=["--lr=1", "no such flag", "optimizer.lr=1"]),
    bad(
        "a flag without a value", "sample", "--interactive", says=["--interactive", "no such flag", "interactive=value"]
    ),
    bad("an option of a group", "train", "lr=1", says=["lr=1", "did you mean optimizer.lr"]),
    bad("a misspelling", "train", "train.lerning_rate=1", says=["train.lerning_rate=1", "no such option"]),
    bad("another command's option", "sample", "run_dir=x", says=["run_dir=x", "no such option"]),
    bad("a plus", "train", "+seed=1", says=["+seed=1", "without +"]),
    bad("a tilde", "train", "~seed", says=["~seed", "without ~"]),
    bad("hydra's own options", "train", "hydra.run.dir=x", says=["hydra.run.dir=x", "no such option"]),
    bad("a whole group", "train", "train=fast", says=["train=fast", "group of options", "train.max_steps=value"]),
    bad(
        "a choice as an option",
        "train",
        "optimizer.name=muon",
        says=["optimizer.name=muon", "chosen as optimizer=muon"],
    ),
    bad("nothing before =", "train", "=5", says=["=5", "no such option"]),
    bad("an empty argument", "train", "", says=["options are written name=value"]),
    bad("words that lost their quotes", "sample", "prompt=Once", "upon", says=["upon", "blanks in quotes"]),
    bad("bytes in a name", "train", "s\udcffed=1", says=["no such option", "did you mean seed"]),
    bad("two values", "train", "seed=1", "seed=2", says=["seed=2", "also given as seed=1"]),
    bad("an unknown preset", "train", "model=mimi", says=["model=mimi", "did you mean model=mini"]),
    bad("a preset that is a path", "train", "model=../model/mini", says=["model=../model/mini", "is not one of"]),
    bad("an unknown experiment", "train", "experiment=none", says=["experiment=none", "is not one of"]),
    bad(
        "two mistakes in one list", "train", "seed=x", "train.max_steps=0", says=["2 mistakes", "seed=x", "max_steps=0"]
    ),
]

TYPES = [
    bad("a word for a number", "train", "train.max_steps=many", says=["train.max_steps=many", "is not a whole number"]),
    bad("a fraction of a step", "train", "train.max_steps=2.5", says=["train.max_steps=2.5", "is not a whole number"]),
    bad("nothing for a number", "train", "train.batch_size=", says=["train.batch_size=", "is not a whole number"]),
    bad("null where a number must be", "train", "seed=null", says=["seed=null", "is not a whole number"]),
    bad("a list for a number", "train", "train.max_steps=[1]", says=["train.max_steps=[1]", "is not a whole number"]),
    bad("an object for a number", "train", "model.n_layer={a:1}", says=["model.n_layer=", "is not a whole number"]),
    bad("a word for a switch", "sample", "stream=maybe", says=["stream=maybe", "is not true or false"]),
    bad("a number for a switch", "sample", "stream=2", says=["stream=2", "is not true or false"]),
    bad("an open quote", "train", "train.max_steps='5", says=["train.max_steps='5", "is not a whole number"]),
    bad(
        "brackets in brackets",
        "train",
        f"train.max_steps={DEEP}",
        says=["train.max_steps=[[[", "is not a whole number"],
    ),
    bad("not a number", "train", "optimizer.lr=nan", says=["optimizer.lr=nan", "is not a finite number"]),
    bad("infinity", "train", "optimizer.weight_decay=inf", says=["optimizer.weight_decay=inf", "not a finite number"]),
    bad("beyond floating point", "train", "optimizer.lr=1e999", says=["optimizer.lr=inf", "is not a finite number"]),
    bad("too small for floating point", "train", "optimizer.lr=1e-999", says=["optimizer.lr=0.0", "greater than 0"]),
    bad("400 digits", "train", "seed=" + "9" * 400, says=["seed=999", "less than"]),
    bad("5,000 digits", "train", "train.max_steps=" + "9" * 5000, says=["train.max_steps=9", "is not a whole number"]),
    bad(
        "a width of 10^308", "train", "model.n_embd=1e308", says=["model.n_embd=1e+308", "is too large; use less than"]
    ),
    bad("an empty interpolation", "train", "seed=${}", says=["seed=${}", "is not a whole number"]),
    bad("a missing value", "train", "seed=???", says=["seed=???", "write the value itself"]),
    bad("an interpolation of itself", "train", "seed=${seed}", says=["seed=${seed}", "write the value itself"]),
    bad(
        "an unset variable", "train", "seed=${oc.env:NOBODY}", says=["seed=${oc.env:NOBODY}", "write the value itself"]
    ),
    bad(
        "a choice of another kind",
        "sample",
        "precision=fp16",
        says=["precision=fp16", "is not one of auto, fp32, bf16"],
    ),
    bad(
        "half a character in an option",
        "train",
        "wandb.project=\udcff",
        says=["wandb.project=\\udcff", "is not valid UTF-8"],
    ),
    bad("a NUL in text", "sample", "prompt=a\0b", says=["prompt=a\\x00b", "NUL character", "leave it out"]),
    bad("a NUL in a path", "train", "run_dir=a\0b", says=["run_dir=a\\x00b", "NUL character", "leave it out"]),
]

RANGES = [
    bad("no step", "train", "train.max_steps=0", says=["train.max_steps=0", "at least 1"]),
    bad("a negative batch", "train", "train.batch_size=-4", says=["train.batch_size=-4", "at least 1"]),
    bad("a negative seed", "sample", "seed=-1", says=["seed=-1", "at least 0"]),
    bad("a seed of 64 bits", "sample", f"seed={2**63}", says=[f"seed={2**63}", "less than"]),
    bad(
        "a batch of terabytes",
        "train",
        "train.batch_size=1e12",
        says=["train.batch_size=", "use train.grad_accum_steps"],
    ),
    bad(
        "an evaluation of terabytes",
        "train",
        "train.eval_batch_size=1e12",
        says=["train.eval_batch_size=", "use train.grad_accum_steps"],
    ),
    bad(
        "a model of terabytes", "train", "model.n_embd=1e9", says=["n_embd=1000000000", "GB of memory", "smaller model"]
    ),
    bad("a billion layers", "train", "model.n_layer=1e9", says=["n_layer=1000000000", "GB of memory", "smaller model"]),
    bad(
        "a tokenizer of terabytes",
        "train",
        "tokenizer=bpe",
        "tokenizer.vocab_size=1e9",
        says=["vocab_size=", "at most"],
    ),
    bad(
        "fewer tokens than bytes",
        "train",
        "tokenizer=bpe",
        "tokenizer.vocab_size=10",
        says=["vocab_size=10", "least 257"],
    ),
    bad("a thousand million threads", "train", "data.workers=1e9", says=["data.workers=", "at most 1024"]),
    bad("everything held out", "train", "data.val_fraction=1", says=["data.val_fraction=1", "less than 1"]),
    bad("nothing held out", "train", "data.val_fraction=0", says=["data.val_fraction=0", "greater than 0"]),
    bad("dropout of everything", "train", "model.dropout=1", says=["model.dropout=1", "less than 1"]),
    bad("a negative temperature", "sample", "temperature=-1", says=["temperature=-1", "at least 0"]),
    bad("a temperature of almost nothing", "sample", "temperature=1e-30", says=["temperature=1e-30", "use 0"]),
    bad(
        "a penalty of nothing", "sample", "repetition_penalty=1e-30", says=["repetition_penalty=1e-30", "at least 0.01"]
    ),
    bad("no tokens to choose from", "sample", "top_p=0", says=["top_p=0", "greater than 0"]),
    bad("a percentage", "sample", "top_p=95", says=["top_p=95", "at most 1"]),
    bad("the best of none", "sample", "top_k=0", says=["top_k=0", "at least 1"]),
    bad("more warm-up than steps", "train", "schedule.warmup_steps=9", says=["warmup_steps=9", "lower it"]),
    bad("files of no size", "export", "max_shard_gb=0", says=["max_shard_gb=0", "greater than 0"]),
    bad("a context beyond the model's", "evaluate", "context_length=99", says=["context_length=99", "at most that"]),
    bad("a stride beyond the context", "evaluate", "stride=17", says=["stride=17", "give at most that"]),
    bad("more beams than tokens", "sample", "num_beams=999", "batch_size=999", says=["num_beams=999", "257"]),
]

CASES: list[Case] = [*NAMES, *TYPES, *RANGES]
