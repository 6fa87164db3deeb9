"""Names of labels and videos as annotation files hold them: on one line, of characters that every form can hold."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

# What FFmpeg reads and people have; a file of another ending is named, not skipped in silence.
ENDINGS_TEXT = (
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .m2v .mpe .wmv .asf .flv .f4v .ts .mts .m2ts .3gp .3g2 .ogv .mxf .vob "
    ".divx .y4m .mjpeg .mjpg .h264 .264 .hevc .265 .dv .rm .rmvb .qt"
)
VIDEO_ENDINGS = frozenset(ENDINGS_TEXT.split())
SOUND_ENDINGS = frozenset({".wav", ".mp3", ".m4a", ".ogg", ".flac"})
"""Files of sound: annotation tools name them beside, or instead of, the video that they were taken from."""
REPLACEMENT = "\ufffd"
BREAKS = re.compile(r"[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
WINDOWS_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def one_line(text: str) -> str:
    """Return a name without line breaks, tabs, and characters that XML 1.0 or UTF-8 can't hold.

    Breaks become a space, the others U+FFFD; byte order marks are taken out. Every writer uses it, so that a label is
    called the same in all forms.
    """
    # Nearly all names: looking at each character of 100,000 labels would take seconds.
    if text.isprintable():
        return text
    text = BREAKS.sub(" ", text.replace("\ufeff", ""))
    return "".join(REPLACEMENT if _is_unfit(character) else character for character in text)


def _is_unfit(character: str) -> bool:
    # Cc: control characters; Cs: halves of characters; the last two of each plane are no characters.
    return unicodedata.category(character) in ("Cc", "Cs") or ord(character) & 0xFFFE == 0xFFFE


def clean_label(text: str) -> str:
    """Return a label as it is read: on one line, without surrounding spaces, accents as one character.

    One class that is typed in two ways stays one. Control characters stay, for the caller to refuse.
    """
    return unicodedata.normalize("NFC", BREAKS.sub(" ", text.replace("\ufeff", "")).strip())


def media_path(address: str) -> str:
    """Return the path in an address such as file:///data/my%20clip.mp4; other paths and web addresses as they are."""
    if not address.lower().startswith("file:"):
        return address
    parts = urlsplit(address)
    # A server's name stands before the path, "localhost" is this machine.
    server = f"//{parts.netloc}" if parts.netloc not in ("", "localhost") else ""
    # A question mark and a number sign that weren't escaped belong to the name.
    path = address[len("file:") :].removeprefix("//").removeprefix(parts.netloc)
    path = server + unquote(path, errors="replace")
    # file:///C:/clip.mp4 is C:/clip.mp4.
    return path[1:] if WINDOWS_PATH.match(path[1:]) else path


def media_name(file: str) -> str:
    """Return a video's name from its path or address: without its ending, if that is one of videos or of sound.

    Folders of a whole path are left out, those of a path from elsewhere stay: they may tell two files apart.
    """
    is_web = re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", file) is not None
    path = media_path(file)
    if is_web and path == file:
        path = unquote(urlsplit(file).path, errors="replace") or file
    is_whole = is_web or path.startswith("/") or WINDOWS_PATH.match(path) is not None
    if WINDOWS_PATH.match(path) or "/" not in path:
        path = path.replace("\\", "/")
    while path.startswith("./"):
        path = path[2:]
    if is_whole:
        path = path.rstrip("/").rsplit("/", 1)[-1]
    ending = PurePosixPath(path).suffix
    return path.removesuffix(ending) if ending.lower() in VIDEO_ENDINGS | SOUND_ENDINGS else path
