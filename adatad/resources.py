"""Files that come with the package: experiments (configs/) and DeepSpeed's settings (ds_configs/).

In a checkout they lie beside the package, in an installation inside it.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
FOLDERS = ("configs", "ds_configs")


def resource(name: str) -> Path:
    """Return the path of a file or folder that comes with the package, such as configs/demo/tia.yaml."""
    # Inside the package first: a folder of this name beside an installed one is somebody else's.
    installed = PACKAGE / name
    return installed if installed.exists() else PACKAGE.parent / name


def here_or_resource(path: str) -> str:
    """Return the path; if the current folder has no such file, that of the file of this name in the package."""
    # ".." would lead out of the shipped folders.
    is_ours = path.startswith(tuple(f"{folder}/" for folder in FOLDERS))
    if is_ours and ".." not in path and not Path(path).exists() and resource(path).is_file():
        return str(resource(path))
    return path


def checkout() -> Path | None:
    """Return the folder of the checkout that the package runs from; None in an installation."""
    return PACKAGE.parent if (PACKAGE.parent / "setup.cfg").is_file() else None
