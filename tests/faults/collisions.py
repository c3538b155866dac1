"""Two processes at once: trainings in one run folder, preparations of one corpus, readers of a run that is training."""

from __future__ import annotations

import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.faults.compare import differences
from tests.faults.findings import Finding
from tests.faults.processes import ROOT, Job, Running, one_line, tiny, write_book

MEETINGS = 5  # of two processes, at scale 1
READS = 60  # of a run that is training, at scale 1
READERS = 2  # at once
OPENINGS = 3000  # of the same, in one process, at scale 1
OPEN = """
import sys
from gpt.model.opening import open_checkpoint
from gpt.options import UserError
failed = []
for _ in range(int(sys.argv[1])):
    try:
        open_checkpoint("read")
    except UserError as error:
        failed.append(str(error))
print(len(failed), *failed[:1], sep="\\n")
"""
SLOW_DISK = """
import os, time
_real = os.fsync
def fsync(descriptor):
    time.sleep(0.7)
    _real(descriptor)
os.fsync = fsync
"""
IN_USE, WAITING = "in use by another process", "Another process is preparing this corpus"


def findings(scale: float) -> Iterator[Finding]:
    meetings = max(1, round(MEETINGS * scale))
    with tempfile.TemporaryDirectory(prefix="newleaf-collisions-") as folder:
        cwd = Path(folder)
        write_book(cwd / "book.txt")
        straight = tiny(cwd, "undisturbed", train__grad_accum_steps=10)  # there is time to halt it
        assert straight.run().status == 0
        yield second_is_refused(straight)
        yield same_instant(straight, meetings)
        yield started_while_one_ends(cwd)
        yield two_preparations(cwd, meetings)
        yield from readers(cwd, max(4, round(READS * scale)), max(100, round(OPENINGS * scale)))


def second_is_refused(straight: Job) -> Finding:
    """The second comes while the first is training, and halted, so that it is not done before."""
    job = straight.changed(run_dir="shared")
    first = job.start()
    reached = first.wait_for_step(1)
    first.process.send_signal(signal.SIGSTOP)
    second = job.run()
    first.process.send_signal(signal.SIGCONT)
    first_status = first.end()
    wrong = [] if reached and first_status == 0 else [f"the first ended with status {first_status}"]
    if not (one_line(second, 2) and IN_USE in second.seen):
        wrong.append(f"the second ended with status {second.status}")
    wrong += differences(straight.run_dir, job.run_dir)
    result = "; ".join(wrong[:3]) or "the second refused, the first as undisturbed"
    return Finding("a second training in the same run folder", result, not wrong, second.seen)


def same_instant(straight: Job, meetings: int) -> Finding:
    """Two start at once in a run folder that is not there yet."""
    wrong, seen, ends = [], "", Counter[str]()
    for number in range(meetings):
        job = straight.changed(run_dir=f"together-{number}")
        both = [job.start(), job.start()]
        statuses = sorted(running.end() for running in both)
        ends[" and ".join(map(str, statuses))] += 1
        for running in both:
            if running.status != 0:
                seen = running.seen
                if not (one_line(running, 2) and IN_USE in running.seen):
                    wrong.append(f"status {running.status}: {running.seen}")
        wrong += differences(straight.run_dir, job.run_dir)
    pairs = ", ".join(f"{count} times {pair}" for pair, count in ends.items())
    result = f"exit statuses {pairs}; " + ("; ".join(wrong[:3]) or "each run as undisturbed")
    return Finding("two trainings that start at once in a new run folder", result, not wrong, seen)


def started_while_one_ends(cwd: Path) -> Finding:
    """On a slow disk and with long steps, two Ctrl-C in the step after a checkpoint, which is being written, and the
    same command again at once: it may be refused, but both may not be at work in one folder."""
    straight = tiny(cwd, "undisturbed-slow", train__grad_accum_steps=80, train__max_steps=12)
    assert straight.run().status == 0
    site = cwd / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SLOW_DISK, encoding="utf-8")
    slow = {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    job = straight.changed(run_dir="ending")
    first = replace(job, variables=slow).start()
    writing = job.run_dir / "checkpoints/partial-00000005"
    reached = first.wait_until(writing.is_dir)
    for _ in range(2):
        first.process.send_signal(signal.SIGINT)
        first.sleep(0.05)
    second = job.start()
    at_work = second.wait_until(lambda: second.last_step() is not None) and first.alive
    first.end()
    second.end()
    wrong = ["both were at work at once"] if at_work else []
    wrong += [] if reached and one_line(first, 130) else [f"the first ended with status {first.status}: {first.seen}"]
    refused = one_line(second, 2) and IN_USE in second.seen
    if second.status != 0 and not refused:
        wrong.append(f"the second ended with status {second.status}: {second.seen}")
    last = job.run()
    if last.status != 0:
        wrong.append(f"after both: status {last.status}: {last.seen}")
    wrong += differences(straight.run_dir, job.run_dir)
    result = "; ".join(wrong[:3]) or f"the second {'refused' if refused else 'continued'}, in the end as undisturbed"
    return Finding("two Ctrl-C on a slow disk, and the same command at once", result, not wrong, second.seen)


def two_preparations(cwd: Path, meetings: int) -> Finding:
    """Two runs of their own on one corpus, which neither finds prepared; a BPE is trained for it."""
    bpe = {"tokenizer": "bpe", "tokenizer__vocab_size": 400}
    straight = tiny(cwd, "undisturbed-bpe", **bpe)
    assert straight.run().status == 0
    wrong, waited, seen = [], 0, ""
    for number in range(meetings):
        jobs = [straight.changed(run_dir=f"{side}-{number}", data__prepared_dir=f"p-{number}") for side in "ab"]
        both = [job.start() for job in jobs]
        for job, running in zip(jobs, both, strict=True):
            running.end()
            waited += WAITING in running.said
            seen = seen or next((line for line in running.said.splitlines() if WAITING in line), "")
            if running.status != 0:
                wrong.append(f"status {running.status}: {running.seen}")
            else:
                wrong += [line for line in differences(straight.run_dir, job.run_dir) if "prepared_dir" not in line]
        made = [path.name for path in jobs[0].prepared_dir.iterdir() if not path.name.endswith(".lock")]
        if len(made) != 1:
            wrong.append(f"prepared {', '.join(made)}")
    result = f"in {meetings} meetings {waited} waited; " + ("; ".join(wrong[:3]) or "all runs as undisturbed")
    return Finding("two that prepare one corpus at once", result, not wrong, seen)


def readers(cwd: Path, reads: int, openings: int) -> Iterator[Finding]:
    """Samples and scores of a run that saves each step, whose every step is the best so far, and that keeps one; then
    the same is only opened, thousands of times, which meets more of the moments when `best` moves."""
    trainer = tiny(
        cwd, "read", train__max_steps=100_000, train__eval_every=1, train__eval_tokens=64, train__sample_tokens=0,
        train__keep_checkpoints=1, schedule="constant", optimizer__lr=1e-5,
    )  # fmt: skip
    training = trainer.start()
    assert training.wait_until((trainer.run_dir / "checkpoints/best/config.json").is_file), training.said
    common = {"checkpoint": "read", "device": "cpu"}
    sample = Job(cwd, "sample.py", common | {"max_new_tokens": 3})
    evaluate = Job(cwd, "evaluate.py", common | {"max_tokens": 64, "data.prepared_dir": "prepared"})
    with ThreadPoolExecutor(READERS) as pool:
        ended: list[Running] = list(pool.map(Job.run, [(sample, evaluate)[number % 2] for number in range(reads)]))
    failed = [running for running in ended if running.status != 0 or running.traceback or not running.printed]
    yield read(training, "sample.py and evaluate.py", reads, len(failed), failed[0].seen if failed else "")
    (cwd / "open.py").write_text(OPEN, encoding="utf-8")
    opened = Job(cwd, str(cwd / "open.py"), arguments=(str(openings),)).run()
    count, _, message = opened.printed.partition("\n")
    yield read(training, "open_checkpoint", openings, int(count or openings), message or opened.seen)
    training.kill()


def read(training: Running, what: str, times: int, failed: int, seen: str) -> Finding:
    steps = (training.last_step() or (0, False))[0]
    result = f"{failed} of {times} failed, of a run that has written {steps} checkpoints"
    if not training.alive:
        result += f"; the training ended with status {training.status}: {training.seen}"
    return Finding(f"{what} of a run that saves each step", result, training.alive and not failed, seen)
