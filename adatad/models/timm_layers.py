"""The layers of timm's that are used here, without the rest of it.

`import timm` loads every model that it knows, and torchvision: a second of every command, and a failure where
torchvision's compiled operators don't fit the torch that is there. The files that are wanted need neither, so they are
imported as parts of packages that hold nothing else.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_bare: dict[str, ModuleType] = {}
if "timm" not in sys.modules:
    _folder = Path(find_spec("timm").origin).parent
    for _name, _path in (("timm", _folder), ("timm.layers", _folder / "layers")):
        _bare[_name] = ModuleType(_name)
        _bare[_name].__path__ = [str(_path)]
sys.modules.update(_bare)

from timm.layers.mlp import Mlp  # noqa: E402
from timm.layers.weight_init import trunc_normal_  # noqa: E402

# Whoever imports timm after this gets all of it, and who unpickles an Mlp doesn't.
for _name in _bare:
    del sys.modules[_name]
Mlp.__module__ = __name__

__all__ = ["Mlp", "trunc_normal_"]
