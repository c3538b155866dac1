"""From what a user calls a model to a folder: a run, a checkpoint, a model folder, or an id on the Hugging Face Hub.

Downloads go through huggingface_hub, into its cache (HF_HOME) for every program of the user's. A file whose transfer
breaks goes on where it was while the process lives; another process fetches it anew, but none that was finished.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gpt.options import UserError, nearest

ALIASES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
MODEL_FILES = ("config.json", "adapter_config.json")  # either makes a folder a model
HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>(?!.*\.\.).+))?", re.ASCII)
# What is fetched; the weights' expressions in order, the first that a repository has anything of.
SMALL_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt|vocab\.txt"
    r"|adapter_.*"
)
WEIGHT_FILES = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
    re.compile(r"adapter_model\.(safetensors|bin)"),
)


@dataclass(frozen=True)
class HubModel:
    """A repository on the Hub, perhaps at one of its branches, tags or commits."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    @classmethod
    def parse(cls, name: str) -> HubModel | None:
        """The model that `name` names (`gpt2`, `org/name`, `org/name@revision`), or None where it is a path."""
        found = HUB_ID.fullmatch(name)
        if not found or "\\" in name or name.endswith("/"):
            return None
        repository = ALIASES.get(found["repository"], found["repository"])
        return cls(repository, found["revision"]) if "/" in repository else None


def find_model(path: str | Path, option: str = "checkpoint") -> Path:
    """The model folder that a user means: a run's best, the folder itself, or what the Hub has by that name.

    `option` is what the user wrote it to, for messages. Raises UserError.
    """
    given, said = expanded(path), f"{option}={path}"
    try:
        found = local_model(given, said)
        if found is None and not given.exists():
            raise FileNotFoundError
    except (FileNotFoundError, ValueError):  # ValueError: a name with NUL, which adapter_config.json may hold
        try:
            if model := HubModel.parse(str(path)):
                return download(model, said)
            raise UserError(f"{said}: there is no such folder; give a run (runs/…), a checkpoint or a model folder")
        except UserError as error:
            alike = similar(given)
            hint = f"; did you mean {option}={' or '.join(alike)}?" if alike else ""
            raise UserError(f"{error}{hint}") from None
    except OSError as error:
        raise UserError(f"{said[:300]}: cannot be looked at ({error.strerror}); check the path") from None
    if found is None:
        raise UserError(
            f"{said}: this is no checkpoint: it has neither checkpoints/best nor {' nor '.join(MODEL_FILES)}"
        )
    return found


def similar(missing: Path) -> list[str]:
    """Folders beside a path that is not there whose names are nearly its own."""
    try:
        beside = [path.name for path in missing.parent.iterdir() if path.is_dir()]
    except (OSError, ValueError):
        return []
    return [str(missing.with_name(name)) for name in nearest(missing.name, beside)]


def expanded(path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~somebody, who has no home here
        return Path(path)


def is_local(name: str) -> bool:
    """Whether a name, which a stranger may have written, is that of something on this machine."""
    try:
        return expanded(name).exists()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def local_model(given: Path, said: str) -> Path | None:
    """The model folder at a path; None where there is none. Raises UserError where something else is there, whose
    remedy is another, and OSError where it cannot be looked at."""
    for folder in (given / "checkpoints" / "best", given / "best", given):
        if is_model(folder):
            return folder
    if given.is_symlink() and not given.exists():
        raise UserError(
            f"{said}: this link leads nowhere; copy a checkpoint with what it leads to (cp -rL), or use export.py"
        )
    if given.exists() and not given.is_dir():
        raise UserError(f"{said}: this is a file; give the folder of a run, a checkpoint or a model")
    if (given / "checkpoints").is_dir() or (given / "config.yaml").is_file():
        raise UserError(f"{said}: this run has no checkpoint yet; train it further first")
    return None


def is_model(folder: Path) -> bool:
    """Whether a folder is a model's. Through a link it is looked at again: a run may have made it lead elsewhere and
    deleted where it led to, between the two."""
    looks = 3 if folder.is_symlink() else 1
    return any((folder / name).is_file() for _ in range(looks) for name in MODEL_FILES)


@functools.cache  # a command asks for its model more than once
def download(model: HubModel, said: str) -> Path:
    """The local snapshot of a model on the Hub, completed where needed; the cached one where the Hub is out of reach.

    `said` opens each message. Raises UserError: no such model or revision, no permission, no weights, no network.
    """
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        info = HfApi().model_info(model.repository, revision=model.revision)
        names = wanted([file.rfilename for file in info.siblings or ()])
        check_whole(names, f"{said}: {model} on the Hub")
        if not is_cached(model.repository, info.sha, names):
            print(f"Downloading {model} from the Hugging Face Hub ({len(names)} files)", file=sys.stderr)
        folder = Path(snapshot_download(model.repository, revision=info.sha, allow_patterns=names))
        remember_commit(folder, model.revision)
        return folder
    except errors.GatedRepoError:
        raise UserError(
            f"{said}: {model} is gated; ask for access at https://huggingface.co/{model.repository}, "
            "then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{said}: there is no such folder, and no model {model.repository} on the Hub; "
            "mend the name, or `hf auth login` if it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{said}: {model.repository} has no branch, tag or commit {model.revision}; leave out @{model.revision} "
            f"or pick one at https://huggingface.co/{model.repository}/commits"
        ) from None
    except errors.HFValidationError:
        raise UserError(f"{said}: there is no such folder, and the Hub has no such names") from None
    except (errors.HTTPError, OSError) as error:  # of whichever HTTP library this huggingface_hub uses
        return cached_snapshot(model, said, error)


def remember_commit(snapshot: Path, revision: str | None) -> None:
    """Note in the cache which commit a branch or tag was, as huggingface_hub does where it is asked for by that name.

    Written once the snapshot is whole, so that a broken download leaves the earlier one to `cached_snapshot`.
    """
    from huggingface_hub import constants

    reference = snapshot.parents[1] / "refs" / (revision or constants.DEFAULT_REVISION)
    if reference.name == snapshot.name:  # a commit
        return
    partial = reference.with_name(f"{reference.name}.{os.getpid()}.tmp")  # another process may be reading it
    with contextlib.suppress(OSError):  # a cache that may only be read is as good today
        reference.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(snapshot.name)
        partial.replace(reference)


def cached_snapshot(model: HubModel, said: str, error: Exception) -> Path:
    """The copy in the cache of a model that cannot be asked for now. Raises UserError where it is not whole."""
    from huggingface_hub import constants, snapshot_download

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        raise UserError(f"{said}: the Hub refuses {model} ({status}); `hf auth login` first") from None
    try:
        found = snapshot_download(
            model.repository, revision=model.revision, local_files_only=True, allow_patterns=list(MODEL_FILES)
        )
        folder = Path(found)
        check_whole(wanted([path.name for path in folder.iterdir()]), said)
        return folder
    except (OSError, UserError):
        why = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(
            f"{said}: there is no such folder, {model} is not whole in the cache {constants.HF_HUB_CACHE}, and "
            f"{constants.ENDPOINT} could not give it ({why}). Try again with a network (finished files are kept), or "
            "fetch it elsewhere and give its folder, or set HF_HOME to a cache that has it"
        ) from None


def wanted(names: Collection[str]) -> list[str]:
    """The files that we read of a repository's: configuration, tokenizer, and the weights in one format."""
    for weights in WEIGHT_FILES:
        if any(weights.fullmatch(name) for name in names):
            return sorted(name for name in names if SMALL_FILES.fullmatch(name) or weights.fullmatch(name))
    return sorted(filter(SMALL_FILES.fullmatch, names))


def check_whole(names: Collection[str], what: str) -> None:
    """Raise UserError where the files are no model."""
    if not any(name in names for name in MODEL_FILES):
        raise UserError(f"{what} is no transformers model: it has neither {' nor '.join(MODEL_FILES)}")
    if not any(weights.fullmatch(name) for name in names for weights in WEIGHT_FILES):
        raise UserError(f"{what} has neither model.safetensors nor pytorch_model.bin; ask its owner for safetensors")


def is_cached(repository: str, commit: str | None, names: Collection[str]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return all(isinstance(try_to_load_from_cache(repository, name, revision=commit), str) for name in names)
