"""Types of the spec's numbers, with their bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def _no_flag(value: Any) -> Any:
    """Refuse true and false, which pydantic takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "expected a number")
    return value


Float = Annotated[float, BeforeValidator(_no_flag)]
Int = Annotated[int, BeforeValidator(_no_flag)]
Fraction = Annotated[Float, Field(ge=0.0, le=1.0)]
Rate = Annotated[Float, Field(ge=0.0, lt=1.0)]
# Upper bounds are far above what is of use; what is computed from values below them is finite.
# Without bounds, 1e300 here becomes an overflow or an endless loop far from the key that caused it.
MAX_COUNT, MAX_LENGTH = 10**9, 10**6
Count = Annotated[Int, Field(ge=0, le=MAX_COUNT)]
Size = Annotated[Int, Field(ge=1, le=MAX_COUNT)]
Length = Annotated[Int, Field(ge=1, le=MAX_LENGTH)]
"""One side of a tensor."""
# -1 is global attention, as in ActionFormer's own settings.
AttentionWindow = Annotated[Int, Field(ge=-1, le=10**6)]
Layers = Annotated[Int, Field(ge=0, le=1_000)]
Positive = Annotated[Float, Field(gt=0.0, le=1e12)]
NonNegative = Annotated[Float, Field(ge=0.0, le=1e12)]
Ratio = Annotated[Float, Field(gt=0.0, le=1e3)]
# threading's waits overflow a little above this.
Seconds = Annotated[Float, Field(gt=0.0, le=1e9)]
"""Seconds, at most as many as threads take for a time limit."""
