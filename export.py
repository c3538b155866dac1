"""Export a model as a plain Hugging Face folder: `python export.py --help` lists every option."""

from gpt.cli import Command, leave, loading, main
from gpt.config import ExportConfig

COMMAND = Command(
    kind=ExportConfig,
    config="export",
    description="Write a model without the trainer's state: adapters merged, weights cast and split as asked, with a "
    "generation configuration and a model card. Hugging Face transformers loads it as it is.",
    examples=(
        "python export.py checkpoint=runs/stdlib-mini output=my-model",
        "python export.py checkpoint=runs/stdlib-mini output=my-model dtype=bf16",
    ),
)


def run(config: ExportConfig) -> int:
    with loading():  # torch is slow to import, and `--help` does without
        from gpt.training.export_checkpoint import export

    return export(config)


if __name__ == "__main__":
    leave(main(COMMAND, run))
