"""The base of all sections of a spec."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: frozen, and without unknown keys, infinities or NaN."""

    # Frozen: all parts of a run share one spec. The docstrings under keys are what `adatad spec --explain` prints.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
