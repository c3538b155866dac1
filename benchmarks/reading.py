"""How fast training batches come from a corpus that the machine's memory does not hold, in two orders.

    sudo env PATH="$PATH" python -m benchmarks.reading --gigabytes 8 --memory 2

`everywhere` permutes all windows of the stream with each other, and leaves it to the kernel what it reads besides a
page that is asked for (`read_ahead_kb` of the disk, which is printed); `no surroundings` forbids it to read more.
`stretches` is Newleaf's order of a long stream, which shuffles 256 stretches from all over it at a time, and reads them
ahead. Each repetition is a process that reads batches of 64 windows of 1,024 tokens for so many seconds from a cold
cache, in a control group (hence sudo) whose memory, page cache included, is limited. `read` counts the bytes that came
from the disk for each byte of a window.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import in_turn, median, print_table, spread, worker, write_json

CONTENDERS = ("everywhere", "no surroundings", "stretches")
CONTEXT, BATCH = 1024, 64
FILE_BYTES = 2**28


def write_stream(folder: Path, gigabytes: int) -> None:
    """Random tokens of GPT-2's vocabulary."""
    import numpy as np

    generator = np.random.default_rng(0)
    for number in range(gigabytes * 10**9 // FILE_BYTES + 1):
        with (folder / f"train-{number:05d}.bin").open("wb") as file:
            file.write(generator.integers(0, 50257, FILE_BYTES // 2, dtype=np.uint16).data)
            file.flush()
            os.fsync(file.fileno())


def measure(name: str, folder: Path, gigabytes: float, seconds: float) -> dict[str, Any]:
    """What one process reads."""
    from gpt.config import TokenizerConfig
    from gpt.text import windows
    from gpt.text.streams import TokenStream
    from gpt.text.vocabularies import build_tokenizer

    if name != "stretches":
        windows.STRETCHES = 2**40
    files = sorted(folder.glob("*.bin"))
    forget(files)
    shards = [{"file": file.name, "tokens": FILE_BYTES // 2} for file in files]
    meta = {"documents": 1, "bytes": 1, "characters": 1, "shards": shards}
    stream = TokenStream(folder, build_tokenizer(TokenizerConfig(name="gpt2")), meta)
    data = windows.WindowData(stream, CONTEXT, 0)
    if name == "no surroundings":
        stream.read_no_surroundings()
    limit_memory(int(gigabytes * 1e9))
    before, started, batches = bytes_read(), time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds:
        data.batch(batches * BATCH, BATCH)
        batches += 1
    used = batches * BATCH * CONTEXT * 2
    return {"sequences": batches * BATCH / passed, "amplification": (bytes_read() - before) / used}


def forget(files: list[Path]) -> None:
    """Drop files from the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def bytes_read() -> int:
    """From the disk, by this process."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def limit_memory(n_bytes: int) -> None:
    """Put this process in a control group of its own, of version 1 or 2. Exits where that is not permitted."""
    first = Path("/sys/fs/cgroup/memory")
    root, limit = (first, "memory.limit_in_bytes") if first.is_dir() else (first.parent, "memory.max")
    group = root / f"newleaf-reading-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(n_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        sys.exit(f"{group}: {error.strerror}; a control group takes Linux and root")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=int, default=8, help="of the corpus")
    parser.add_argument("--memory", type=float, default=2, help="GB that a process may use, page cache included")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the corpus is made, and removed again")
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_stream(Path(folder), arguments.gigabytes)
        given = (folder, arguments.memory, arguments.seconds)
        results = in_turn({name: worker("reading", name, *given) for name in CONTENDERS}, arguments.repeats)
    for file in sorted(Path("/sys/block").glob("*/queue/read_ahead_kb")):
        if not file.parts[3].startswith(("loop", "ram")):
            print(f"{file.parts[3]}: read_ahead_kb {file.read_text().strip()}")
    rows = []
    for name in CONTENDERS:
        read = f"{median(results, name, 'amplification'):.2f}"
        rows.append([name, spread(results, name, "sequences", 0), read])
    print_table(["", "windows/s", "bytes read for each used"], rows)
    write_json(arguments.output, results, gigabytes=arguments.gigabytes, memory=arguments.memory)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))))
    else:
        main()
