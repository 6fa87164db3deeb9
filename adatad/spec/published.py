"""Published weights and training logs: the list in published_weights.yaml, and how each file is fetched."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import yaml

LIST = Path(__file__).with_name("published_weights.yaml")
FOLDER = "pretrained"
NOT_KNOWN = "not known"
HUB_FILE = "model.safetensors"


class PublishedFile(NamedTuple):
    """A published file. kind: backbone, model or log; path: where specs look for it; drive: Google Drive's id; hub,
    hub_file: repository and file on Hugging Face; made_from: the published file that `adatad weights import` makes it
    from; sha256_start: first digits, where only these are known; preset: of `model.backbone` that it fits. None:
    not known."""

    name: str
    kind: str
    what: str
    path: str
    format: str
    licence: str | None = None
    drive: str | None = None
    hub: str | None = None
    hub_file: str | None = None
    url: str | None = None
    made_from: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    sha256_start: str | None = None
    preset: str | None = None
    published_mAP: float | None = None  # noqa: N815, the spelling of specs
    also: tuple[str, ...] = ()
    note: str | None = None

    def page(self) -> str | None:
        """Return the address for a browser; None if there is none."""
        if self.drive:
            return f"https://drive.google.com/file/d/{self.drive}/view"
        return f"https://huggingface.co/{self.hub}" if self.hub else self.url

    def download(self) -> str | None:
        """Return the address of the file itself; None if it isn't known."""
        if self.drive:
            return f"https://drive.usercontent.google.com/download?id={self.drive}&export=download&confirm=t"
        if self.hub and self.hub_file:
            return f"https://huggingface.co/{self.hub}/resolve/main/{quote(self.hub_file)}"
        return self.url

    def digest(self) -> str | None:
        """Return what is known of the file's SHA-256: all digits or the first; None for nothing."""
        return self.sha256 or self.sha256_start

    def fetch(self, path: str | Path | None = None) -> str:
        """Return the command lines that fetch the file, to where `path` names it."""
        path = Path(path or self.path)
        if self.made_from:
            source = published()[self.made_from]
            output = f"--output {shlex.quote(str(path))}"
            return f"{source.fetch()} && adatad weights import {shlex.quote(source.path)} {output}"
        if path == Path(self.path):
            return f"adatad weights fetch {self.name}"
        return f"adatad weights fetch {self.name} --output {shlex.quote(str(path.parent))}"

    def by_hand(self, path: str | Path | None = None) -> str:
        """Return what to download in a browser, and where to put it."""
        place = self.page()
        if place is None:
            return f"it is made by: {self.fetch(path)}"
        file = f" (its file {self.hub_file})" if self.hub_file else ""
        return f"open {place}{file} in a browser, and save the file as {path or self.path}"


@cache
def published() -> dict[str, PublishedFile]:
    """Return all published files by name, in the order of the list."""
    entries = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return {entry["name"]: PublishedFile(**entry | {"also": tuple(entry.get("also", ()))}) for entry in entries}


def by_file(path: str | Path) -> PublishedFile | None:
    """Return the published backbone or model that a file's name stands for; None for an unknown name."""
    path = Path(path)
    # All repositories of the hub have one name for their weights: there the folder tells which.
    parts = path.parts[-2 if path.name == HUB_FILE else -1 :]
    return next((entry for entry in published().values() if Path(entry.path).parts[-len(parts) :] == parts), None)


def trained_model(row: str) -> PublishedFile | None:
    """Return the model that OpenTAD's authors trained for an experiment; None if they published none."""
    models = (entry for entry in published().values() if entry.kind == "model")
    return next((entry for entry in models if row == entry.name or row in entry.also), None)
