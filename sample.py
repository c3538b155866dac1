"""Sample text from a trained model: `python sample.py --help` lists every option."""

from gpt.cli import Command, leave, loading, main
from gpt.config import SampleConfig

COMMAND = Command(
    kind=SampleConfig,
    config="sample",
    description="Write text with a model: the best checkpoint of a run, or any gpt2, llama or qwen3 folder.",
    examples=(
        "python sample.py checkpoint=runs/stdlib-mini prompt='def '",
        "python sample.py checkpoint=runs/stdlib-mini num_samples=3 temperature=0.7 top_k=50 top_p=0.95 seed=42",
        "python sample.py checkpoint=runs/stdlib-mini prompt='def ' num_beams=4 num_samples=2",
        "python sample.py checkpoint=runs/stdlib-mini prompt_file=prompts.txt output=samples.jsonl",
        "python sample.py checkpoint=runs/stdlib-mini interactive=true",
    ),
)


def run(config: SampleConfig) -> int:
    with loading():  # torch is slow to import, and `--help` does without
        from gpt.inference.console import sample

    return sample(config)


if __name__ == "__main__":
    leave(main(COMMAND, run))
