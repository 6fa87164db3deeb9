"""The reference pages: every key of a spec from the schema, every command from its parser."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Mapping

from pydantic.fields import FieldInfo

from adatad.spec.document import Key
from adatad.spec.key_help import section_at, type_text, written
from adatad.spec.keys import all_keys, dotted, fields_at

WIDTH = 120
PAGE = re.compile(r"docs/([\w-]+\.md)")
COMMAND = re.compile(r"^(?:\w+=\S+ )*(adatad|torchrun|deepspeed|sbatch|find|source|bash|python) ")
KEYS_HEAD = """# Keys of a spec

Made by `adatad dev docs` from the schema; don't edit. All {count} keys: type, default, meaning. `adatad spec --explain
KEY` prints the same with the shipped specs that set the key, and takes OpenTAD's names too; `adatad spec SPEC` prints a
spec's own values, and where each comes from. How a spec is written: [training.md](training.md#the-spec).
"""
COMMANDS_HEAD = """# Commands

Made by `adatad dev docs` from the parsers; don't edit. `adatad COMMAND --help` prints the same. The exit code is 0 if
all is done; 1 if it is done and what was asked for isn't so (a bar not met, a video that can't be read); 2 for bad
input, whose message names the file, the key or the video; 75 if it was asked to stop and has saved; 130 after Ctrl-C.
"""


def spec_page() -> str:
    """Return the page of all keys, by section."""
    sections = {name: field for name, field in fields_at(()).items() if fields_at((name,))}
    parts = [KEYS_HEAD.format(count=len(all_keys()))]
    parts += [_key((name,), field, 2) for name, field in fields_at(()).items() if name not in sections]
    for name in sections:
        parts += _section((name,), 2)
    return "\n".join(parts)


def _section(key: Key, level: int) -> Iterator[str]:
    inner = fields_at(key)
    # A list of sections: the keys are those of an item.
    is_list = dotted((*key, 0, next(iter(inner)))) in all_keys()
    at = (*key, 0) if is_list else key
    yield f"{'#' * level} `{_shown(key)}`\n\n{'A list. ' if is_list else ''}{_prose(section_at(key).__doc__ or '')}\n"
    # Values first: what follows a sub-section's heading would read as its own.
    values = [name for name in inner if dotted((*at, name)) in all_keys()]
    for name in values:
        yield _key((*at, name), inner[name], 4)
        # A value that may be a list of sections, too.
        yield from (_key((*at, name, 0, item), of_item, 4) for item, of_item in fields_at((*at, name, 0)).items())
    for name in inner:
        if name not in values:
            yield from _section((*at, name), 3)


def _key(key: Key, field: FieldInfo, level: int) -> str:
    default = "must be given" if field.is_required() else f"default `{written(field.default)}`"
    text = f"\n{_prose(field.description)}\n" if field.description else ""
    facts = textwrap.fill(f"`{type_text(field)}`, {default}", WIDTH, break_long_words=False, break_on_hyphens=False)
    return f"{'#' * level} `{_shown(key)}`\n\n{facts}\n{text}"


def _shown(key: Key) -> str:
    """Return a key's name; N stands for the number of an item."""
    return ".".join("N" if part == 0 else str(part) for part in key)


def _prose(text: str) -> str:
    """Return a docstring as a paragraph, its pages as links."""
    joined = " ".join(text.split())
    parts = re.split(r"(`[^`]*`)", joined)
    # Outside code: a name in angle brackets would be taken for HTML, and a star for emphasis.
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return textwrap.fill(PAGE.sub(r"[\1](\1)", "".join(parts)), WIDTH, break_long_words=False, break_on_hyphens=False)


Commands = Mapping[str, tuple[str, argparse.ArgumentParser]]
"""What each verb is for, in a few words, and its parser."""


def commands_page(commands: Commands) -> str:
    """Return the page of all commands, with the options of each."""
    parts = [COMMANDS_HEAD, "| | |\n| --- | --- |"]
    parts += [f"| [`adatad {verb}`](#adatad-{verb}) | {what} |" for verb, (what, _) in commands.items()]
    for verb, (_, parser) in commands.items():
        parts.append(f"\n## `adatad {verb}`\n")
        parts += _command(parser)
        for sub in _subparsers(parser):
            parts.append(f"\n### `{sub.prog}`\n")
            parts += _command(sub)
    return "\n".join(parts) + "\n"


def _subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [sub for group in groups for sub in group.choices.values()]


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield _description(parser.description or "")
    options = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    options = [action for action in options if not isinstance(action, argparse._SubParsersAction)]
    if options:
        yield ""
    for action in options:
        # Choices of a positional are shown where it has a name of its own; else they are its name.
        text = _help(action, parser)
        yield textwrap.fill(
            f"- `{_invocation(action)}`{': ' if text else ''}{text}", WIDTH, subsequent_indent="  ",
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip


def _invocation(action: argparse.Action) -> str:
    choices = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else None
    metavar = action.metavar or choices or action.dest.upper()
    value = metavar if isinstance(metavar, str) else " ".join(metavar)
    match action.nargs:
        case 0:
            value = ""
        case "?":
            value = f"[{value}]"
        case "*":
            value = f"[{value} ...]"
        case "+":
            value = f"{value} [{value} ...]"
    names = ", ".join(action.option_strings)
    return f"{names} {value}".strip()


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    if not action.help:
        return ""
    facts = vars(action) | {"prog": parser.prog}
    if action.choices is not None:
        facts["choices"] = ", ".join(map(str, action.choices))
    text = " ".join((action.help % facts).split())
    return PAGE.sub(r"[\1](\1)", text.replace("<", "&lt;").replace("*", "\\*"))


def _description(text: str) -> str:
    """Return a docstring of a command: its commands as a block, its tables as they are, the rest as prose."""
    parts: list[str] = []
    if not text:
        return ""
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if COMMAND.match(lines[0]) and not paragraph.rstrip().endswith("."):
            parts.append("```bash\n" + "\n".join(lines) + "\n```")
        elif any(re.match(r"\s", line) for line in lines):
            parts.append("```text\n" + textwrap.dedent(paragraph) + "\n```")
        # One idea a line, as in lists of suites: joined it couldn't be read.
        elif len(lines) > 2 and all(line.endswith((".", ";", "...")) for line in lines):
            parts.append("\n".join(f"- {_prose(line)}" for line in lines))
        else:
            parts.append(_prose(paragraph))
    return "\n\n".join(parts)
