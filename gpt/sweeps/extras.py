"""Libraries that only some sweeps need, loaded when they are."""

from __future__ import annotations

import importlib
from typing import Any

from gpt.options import UserError


def needed(module: str, option: str) -> Any:
    """The module that an option needs. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(
            f"{option} needs {module}, which is not installed: pip install 'newleaf-gpt[sweep]', or in a clone "
            "pip install -e '.[sweep]'"
        ) from None
