"""What this machine can do at most: rates of matrix products and of memory, of which other figures are fractions.

    python -m benchmarks.limits

Products are torch's own: `torch.mm` in fp32 and bf16, `torch._int_mm` (sums in int32) in int8, into a result that is
there already: fresh memory is paid page by page, which halves the rate of the head in bf16. Each figure is the best of
all repetitions within half a second, for a limit is what the quietest moment allows. Memory is read by a product with a
vector, which does one multiplication per number on every core, and copied with `copy_`, which counts twice: what is
read and what is written. Prints a table, and writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.side_by_side import machine, print_table, write_json

SHAPES = {  # what it is: rows, inner, columns
    "square": (2048, 2048, 2048),
    "the head of GPT-2 on 1,024 tokens": (1024, 768, 50304),
    "a 128-wide MLP on 768 tokens": (768, 128, 512),
    "a 384-wide MLP on 4,096 tokens": (4096, 384, 1536),
}
KINDS = ("fp32", "bf16", "int8")
DTYPES = dict(zip(KINDS, (torch.float32, torch.bfloat16, torch.int8), strict=True))
BUFFER = 2**30  # bytes, more than any cache holds


def best_seconds(work: Callable[[], Any], budget: float = 0.5) -> float:
    """Shortest time of one call, over at least three calls and `budget` seconds."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def product(kind: str, shape: tuple[int, int, int]) -> float:
    """Operations per second of a product of matrices, multiplications and additions counted."""
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)

    def matrix(*size: int) -> Tensor:
        return torch.randint(-127, 128, size, generator=generator).to(DTYPES[kind])

    a, b = matrix(rows, inner), matrix(inner, columns)
    result = torch.empty(rows, columns, dtype=torch.int32 if kind == "int8" else DTYPES[kind])
    multiply = torch._int_mm if kind == "int8" else torch.mm
    return 2 * rows * inner * columns / best_seconds(lambda: multiply(a, b, out=result))


def memory() -> dict[str, float]:
    """Bytes per second that are read, and that are read and written in a copy."""
    source = torch.ones(BUFFER // 4).view(-1, 4096)
    target, vector = torch.empty_like(source), torch.ones(4096)
    return {
        "read": BUFFER / best_seconds(lambda: torch.mv(source, vector)),
        "copy": 2 * BUFFER / best_seconds(lambda: target.copy_(source)),
    }


def measure() -> dict[str, Any]:
    """`products`: operation/s by shape and kind; `memory`: byte/s."""
    products = {name: {kind: product(kind, shape) for kind in KINDS} for name, shape in SHAPES.items()}
    return {"products": products, "memory": memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file for all figures")
    arguments = parser.parse_args()
    found = measure()
    print(f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    rows = [
        [f"{name}: ({shape[0]}×{shape[1]})·({shape[1]}×{shape[2]})"]
        + [f"{found['products'][name][kind] / 1e12:.2f}" for kind in KINDS]
        for name, shape in SHAPES.items()
    ]
    print_table(["product, in 10^12 operations/s", *KINDS], rows)
    print()
    print_table(["memory", "GB/s"], [[name, f"{rate / 1e9:.1f}"] for name, rate in found["memory"].items()])
    write_json(arguments.output, found, threads=torch.get_num_threads(), buffer_bytes=BUFFER)


if __name__ == "__main__":
    main()
