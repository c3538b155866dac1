"""A plan in words, on standard output."""

from __future__ import annotations

from gpt.training.batch_size import in_words, usable
from gpt.training.metrics import duration, size
from gpt.training.plan import BACKWARD, TOKENS_PER_PARAMETER, Plan
from gpt.training.planner import FRAGMENTS, Planner

HOW = {"alone": "one process", "ddp": "a copy in each process (ddp)", "fsdp": "shards in all processes (fsdp)"}


def print_plan(plan: Plan, planner: Planner) -> None:
    rows = [*model_rows(plan, planner), *memory_rows(plan), *step_rows(plan), *run_rows(plan, planner)]
    for name, value in [*rows, ("assumed", "; ".join(assumptions(plan)))]:
        print(f"{name:<14} {value}")


def model_rows(plan: Plan, planner: Planner) -> list[tuple[str, str]]:
    config, model, train = plan.config, planner.model, plan.config.train
    blocks = sum(p.numel() for p in model.blocks.parameters())
    place = f"{plan.world:,} × {plan.gpu.name}" if plan.gpu else planner.hardware.describe(config.model.head_width)
    many = f"{plan.world:,} processes: " if plan.world > 1 and not plan.gpu else ""
    context = f"{planner.tokenizer_size:,} tokens, context {config.model.context_length}"
    split = in_words(train.micro_batch, train.micro_batch * train.grad_accum_steps)
    split += f" × {plan.world:,} processes" if plan.world > 1 else ""
    return [
        ("model", f"{config.model.dialect}, {plan.parameters:,} parameters, {blocks:,} of them in blocks; {context}"),
        ("machines", f"{many}{place}, {HOW[plan.parallel]}"),
        ("update", f"{split} = {plan.tokens_per_step:,} tokens"),
    ]


def memory_rows(plan: Plan) -> list[tuple[str, str]]:
    """Of one process."""
    parts = plan.parts
    there = "" if plan.capacity is None else f" of {size(plan.capacity)}, {size(usable(plan.capacity))} to be used"
    gathered = " and gathered weights" if plan.parallel == "fsdp" else ""
    return [
        ("memory", f"{size(parts.total)} for each process{there}"),
        ("  weights", size(parts.weights)),
        ("  gradients", size(parts.gradients)),
        ("  optimizer", f"{size(parts.optimizer)} ({plan.config.optimizer.name})"),
        ("  activations", f"{size(parts.activations)}, with temporary results{gathered}"),
        ("  logits", size(parts.logits)),
        *([("  checkpoint", f"{size(parts.snapshot)} while one is written")] if parts.snapshot else []),
        ("  libraries", f"{size(parts.libraries)}, with gaps in the memory"),
    ]


def step_rows(plan: Plan) -> list[tuple[str, str]]:
    """Of one update."""
    total = plan.flops_per_token * plan.tokens_per_step
    rows = [("computing", f"{operations(plan.flops_per_token)} a token, {operations(total)} an update")]
    if plan.communication:
        sent = ", ".join(f"{name} {size(count)}" for name, count in plan.communication.items())
        rows.append(("network", f"sent by each process in an update: {sent}"))
    if plan.step_seconds is not None and plan.compute_seconds is not None:
        whole, busy, hidden = (1000 * t for t in (plan.step_seconds, plan.compute_seconds, plan.hidden_seconds))
        network = (
            f"{busy:,.1f} ms computing, {whole - busy:,.1f} ms waiting for the network, which works {hidden:,.1f} ms "
            "behind it"
        )
        rows.append(("time", f"{whole:,.1f} ms an update" + (f": {network}" if plan.world > 1 else "")))
    return rows


def operations(count: int) -> str:
    """A number of floating-point operations, as 1.5 TFLOP."""
    power = max(0, min(5, (len(str(count)) - 1) // 3))
    return f"{count / 1000**power:,.1f} {['', 'k', 'M', 'G', 'T', 'P'][power]}FLOP"


def run_rows(plan: Plan, planner: Planner) -> list[tuple[str, str]]:
    steps = plan.config.train.max_steps
    tokens = steps * plan.tokens_per_step
    best = TOKENS_PER_PARAMETER * plan.parameters
    advice = f"compute-optimal are {TOKENS_PER_PARAMETER}: {best:,} tokens, {best / plan.tokens_per_step:,.0f} steps"
    rows = [("run", f"{steps:,} steps, {tokens:,} tokens, {tokens / plan.parameters:,.2f} a parameter ({advice})")]
    if planner.corpus is not None:
        there = len(planner.corpus.train)
        rows.append(("corpus", f"{there:,} tokens to train on: {tokens / there:.2f} epochs"))
    if plan.step_seconds is not None:
        hours = plan.step_seconds * steps * plan.world / 3600
        rows.append(("whole time", f"{duration(plan.step_seconds * steps)}, {hours:,.1f} GPU hours"))
    else:
        rows.append(("whole time", "not known for this machine: the first steps of a run tell"))
    return rows


def assumptions(plan: Plan) -> list[str]:
    if plan.gpu is None:
        return ["the process by itself takes what this one does now", "a rehearsal without data finds the rest"]
    cluster = plan.config.cluster
    found = [
        f"{100 * cluster.mfu:.0f} % of a peak of {plan.gpu.peak / 1e12:,.0f} TFLOP/s (cluster.mfu)",
        f"activations as a rehearsal of the operations finds them, and {100 * FRAGMENTS:.0f} % more for gaps",
    ]
    if plan.world > 1:
        between = plan.world > cluster.gpus_per_node
        place = "between machines (cluster.gbits_per_second)" if between else "in one machine"
        behind = f"the backward pass, {100 * BACKWARD:.0f} % of computing" if plan.parallel == "ddp" else "computing"
        found += [
            f"each process sends {plan.bandwidth / 1e9:,.1f} GB/s, {place}, behind {behind} where it can",
            f"gradients travel in {plan.config.train.reduce_dtype}",
        ]
    return [*found, "evaluation, checkpoints and compilation not counted"]


def remedy(plan: Plan, nearest: Plan | None) -> str:
    """What to say of a plan that does not fit."""
    assert plan.capacity is not None
    message = (
        f"this run does not fit: a process needs {size(plan.parts.total)}, and of {size(plan.capacity)} "
        f"{size(usable(plan.capacity))} are to be used"
    )
    if nearest is None:
        return f"{message}; nothing but a smaller model or a shorter model.context_length will"
    train, before = nearest.config.train, plan.config.train
    options = [f"train.batch_size={train.batch_size}", f"train.grad_accum_steps={train.grad_accum_steps}"]
    if train.activation_checkpointing and not before.activation_checkpointing:
        options.append("train.activation_checkpointing=true")
    if nearest.parallel != "alone":
        options.append(f"parallel={nearest.parallel}")
    if nearest.world != plan.world:
        options.append(f"cluster.gpus={nearest.world}")
    return f"{message}; the nearest that fits: {' '.join(options)}"
