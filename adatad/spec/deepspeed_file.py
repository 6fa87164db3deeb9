"""DeepSpeed's JSON file as it stands: read, and asked for the ZeRO stage it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adatad.errors import UserError


class DeepSpeedFileError(UserError):
    """A DeepSpeed file that can't be used; the message names the file and the key, and says what to do."""


def read_deepspeed_file(path: str | Path) -> dict[str, Any]:
    """The file's sections. Raises DeepSpeedFileError if it isn't there or isn't a JSON object with a ZeRO stage."""
    try:
        sections = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise DeepSpeedFileError(f"{path}: there is no such DeepSpeed file") from None
    except (OSError, ValueError) as error:
        raise DeepSpeedFileError(f"{path}: can't be read as JSON: {error}") from error
    zero = sections.get("zero_optimization") if isinstance(sections, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") not in (1, 2, 3):
        raise DeepSpeedFileError(
            f"{path}: zero_optimization.stage: expected 1, 2 or 3; ds_configs/ has a file for each"
        )
    return sections


def engine_of(path: str | Path) -> str:
    """The value of `parallel.engine` that a file is for."""
    return f"zero{read_deepspeed_file(path)['zero_optimization']['stage']}"
