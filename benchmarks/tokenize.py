"""Corpus preparation with GPT-2's vocabulary, from text files to finished token files, next to what others do.

    python -m benchmarks.tokenize --sizes 10,100,1000 --repeats 3
    python -m benchmarks.tokenize --form text --output tokenize.json

`tiktoken` is the plain loop on one thread: read, `encode_ordinary`, end of text, write uint16. `datasets.map` does the
same on all cores as nanoGPT's `data/openwebtext/prepare.py`, from loading to the last byte. Newleaf does what
`train.py` does for its users, so it also splits, hashes, checks, flushes to the disk and writes a tokenizer.json.

The corpus is Python's own library (or `--text`), its paragraphs shuffled and numbered until they make so many MB: JSON
lines of about 1 kB, or with `--form text` one file, which the peers get in pieces of a million characters, as the
whole would need ten times its size in memory. No contender remembers text that it has seen. All must make the same
number of tokens. Seconds are of the whole process but the start of Python; memory is the peak of what the process and
its children hold beyond mapped files (sampled, Linux only).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import ROOT, Results, machine, median, print_table, spread, worker, write_json

STARTED = time.perf_counter()
CONTENDERS = ("tiktoken", "datasets.map", "Newleaf")
DOCUMENT_CHARACTERS = 1000
SAMPLE_SECONDS = 0.05


# --- the corpus --------------------------------------------------------------------------------------------------


def write_corpus(path: Path, megabytes: int, files: list[Path]) -> None:
    """Shuffled, numbered paragraphs of `files`: JSON lines of short documents, or one text, by the suffix."""
    texts = [file.read_text(encoding="utf-8", errors="ignore") for file in files]
    paragraphs = [part for text in texts for part in text.replace("\0", "").split("\n\n") if part.strip()]
    rng = random.Random(1)
    size, number, document = 0, 0, ""
    with path.open("w", encoding="utf-8") as out:
        while size < megabytes * 1e6:
            rng.shuffle(paragraphs)
            for paragraph in paragraphs:
                number += 1
                document += f"{number}. {paragraph}\n\n"
                if len(document) < DOCUMENT_CHARACTERS:
                    continue
                line = document if path.suffix == ".txt" else json.dumps({"text": document}, ensure_ascii=False) + "\n"
                out.write(line)
                size, document = size + len(line.encode()), ""
                if size >= megabytes * 1e6:
                    break


def python_library() -> list[Path]:
    from gpt.text.documents import _stdlib_files

    return list(_stdlib_files())


def documents(corpus: Path) -> Iterator[str]:
    """What the peers' loops go over."""
    with corpus.open(encoding="utf-8") as lines:
        if corpus.suffix == ".jsonl":
            yield from (json.loads(line)["text"] for line in lines)
        else:
            while piece := lines.read(1 << 20):
                yield piece + lines.readline()


# --- contenders, each returning its number of tokens -------------------------------------------------------------


def tiktoken_loop(corpus: Path, work: Path) -> int:
    import numpy as np
    import tiktoken

    encoding, total = tiktoken.get_encoding("gpt2"), 0
    with (work / "train.bin").open("wb") as out:
        for text in documents(corpus):
            ids = encoding.encode_ordinary(text)
            ids.append(encoding.eot_token)
            total += len(ids)
            np.array(ids, dtype=np.uint16).tofile(out)
    return total


def datasets_map(corpus: Path, work: Path) -> int:
    import datasets
    import numpy as np
    import tiktoken

    datasets.disable_progress_bars()
    encoding, cores = tiktoken.get_encoding("gpt2"), machine_cores()

    def tokenize(row: dict[str, str]) -> dict[str, Any]:
        ids = [*encoding.encode_ordinary(row["text"]), encoding.eot_token]
        return {"ids": ids, "len": len(ids)}

    if corpus.suffix == ".jsonl":
        rows = datasets.load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(work))
    else:
        rows = datasets.Dataset.from_generator(
            lambda: ({"text": text} for text in documents(corpus)), cache_dir=str(work)
        )
    tokenized = rows.map(tokenize, remove_columns=["text"], num_proc=cores)
    total = int(np.sum(tokenized["len"], dtype=np.int64))
    out, done = np.memmap(work / "train.bin", dtype=np.uint16, mode="w+", shape=(total,)), 0
    shards = min(1024, len(tokenized))
    for index in range(shards):
        shard = tokenized.shard(num_shards=shards, index=index, contiguous=True).with_format("numpy")
        ids = np.concatenate(shard["ids"])
        out[done : done + len(ids)] = ids
        done += len(ids)
    out.flush()
    return total


def newleaf(corpus: Path, work: Path) -> int:
    from gpt.config import DataConfig, TokenizerConfig
    from gpt.text.shards import prepare

    name = "jsonl" if corpus.suffix == ".jsonl" else "text"
    data = DataConfig(name=name, files=(str(corpus),), prepared_dir=str(work / "prepared"))
    made = prepare(data, TokenizerConfig(name="gpt2"))
    return len(made.train) + len(made.val) - 2  # each split starts with an end of text


# --- measuring ---------------------------------------------------------------------------------------------------


def machine_cores() -> int:
    return int(machine()["cores"])


def measured(command: list[str]) -> dict[str, Any]:
    """What a worker printed last, with the peak memory of its process tree in MB."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(SAMPLE_SECONDS)
    output, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{errors[-3000:]}")
    return json.loads(output.strip().splitlines()[-1]) | {"peak_mb": peak / 1e6}


def tree_bytes(pid: int) -> int:
    """Anonymous and shared memory of a process and its descendants, pages in common counted once; 0 where unknown."""
    try:
        status = Path(f"/proc/{pid}/smaps_rollup").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    held = [int(line.split()[1]) for line in status.splitlines() if line.startswith(("Pss_Anon", "Pss_Shmem"))]
    return 1024 * sum(held) + sum(tree_bytes(int(child)) for child in children)


def run(contender: str, corpus: Path) -> None:
    jobs: dict[str, Callable[[Path, Path], int]] = dict(
        zip(CONTENDERS, (tiktoken_loop, datasets_map, newleaf), strict=True)
    )
    with tempfile.TemporaryDirectory(dir=corpus.parent) as work:
        total = jobs[contender](corpus, Path(work))
        print(json.dumps({"seconds": time.perf_counter() - STARTED, "tokens": total}))


def compare(corpus: Path, contenders: list[str], repeats: int) -> Results:
    results: Results = {name: [] for name in contenders}
    for number in range(repeats):
        for name in contenders:
            results[name].append(measured(worker("tokenize", name, corpus)))
            print(f"  {number + 1}/{repeats} {name}: {results[name][-1]}", file=sys.stderr, flush=True)
    if len({result["tokens"] for runs in results.values() for result in runs}) > 1 and corpus.suffix == ".jsonl":
        sys.exit("the contenders made different numbers of tokens")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10,100", help="MB, separated by commas")
    parser.add_argument("--form", choices=("jsonl", "text"), default="jsonl")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="separated by commas")
    parser.add_argument("--text", type=Path, nargs="*", help="text files; default: Python's own library")
    parser.add_argument("--folder", type=Path, help="where corpora are made, and removed again")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    contenders, everything, rows = arguments.contenders.split(","), {}, []
    for size in map(int, arguments.sizes.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            corpus = Path(folder) / f"corpus.{'jsonl' if arguments.form == 'jsonl' else 'txt'}"
            write_corpus(corpus, size, arguments.text or python_library())
            megabytes = corpus.stat().st_size / 1e6
            everything[str(size)] = results = compare(corpus, contenders, arguments.repeats)
        for name in contenders:
            seconds = median(results, name, "seconds")
            ratio = f"{median(results, 'tiktoken', 'seconds') / seconds:.2f}" if "tiktoken" in contenders else ""
            speed = f"{results[name][0]['tokens'] / seconds / 1e6:.2f}"
            rate, peak = f"{megabytes / seconds:.1f}", f"{median(results, name, 'peak_mb'):,.0f}"
            rows.append([f"{size:,}", name, spread(results, name, "seconds", 1), speed, rate, ratio, peak])
    print_table(["MB", "", "seconds", "M tokens/s", "MB/s", "× tiktoken", "peak MB"], rows)
    write_json(arguments.output, everything, form=arguments.form, repeats=arguments.repeats)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        run(sys.argv[2], Path(sys.argv[3]))
    else:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        main()
