"""AdaTAD: end-to-end temporal action detection in long videos, trained in little memory.

The names in `__all__` are what a notebook needs (docs/api.md). They are imported when they are first used, because
torch takes seconds.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adatad.detect.detections import Detection, Detections
    from adatad.errors import UserError
    from adatad.library import Detector, build_detector, load_detector, load_spec, read_video, score
    from adatad.spec import Spec

__version__ = "0.2.0"
__all__ = [
    "Detection",
    "Detections",
    "Detector",
    "Spec",
    "UserError",
    "build_detector",
    "load_detector",
    "load_spec",
    "read_video",
    "score",
]
_MODULES = {
    "Detection": "adatad.detect.detections",
    "Detections": "adatad.detect.detections",
    "Spec": "adatad.spec",
    "UserError": "adatad.errors",
}


def __getattr__(name: str) -> Any:
    # Called for names that the module doesn't have yet (PEP 562).
    if name not in __all__:
        raise AttributeError(f"module 'adatad' has no attribute {name!r}")
    from importlib import import_module

    # Not kept in the module: imports are cached already.
    return getattr(import_module(_MODULES.get(name, "adatad.library")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
