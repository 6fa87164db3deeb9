"""The verbs of `adatad`, and how one is found, parsed and run: `start` in a process, `main` inside one.

A verb is a module of this package, imported only when it is asked for. It has a docstring (the text of `--help`) and
`add_arguments(parser)`, which names the function to call: `parser.set_defaults(action=...)`. A module that must act
before slow imports, as training does about signals, has `before_imports()`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NoReturn

from adatad.cli import command
from adatad.errors import UserError
from adatad.printing import name_program

# In the order of --help: first what a run needs, from the demo on; tools last.
VERBS = {
    "demo": "make the built-in data set, train on it, evaluate and draw",
    "train": "train the experiment of a spec",
    "detect": "say what happens when in videos, with a trained model",
    "extract": "write features of videos, of a trained model or a bare backbone",
    "test": "score a checkpoint on the validation videos",
    "evaluate": "score a file of detections",
    "fuse": "join the detections of several models into one file",
    "explain": "say where the mAP goes, how sure it is, and what to do first",
    "replay": "compute a step again that was skipped, and name what goes bad",
    "report": "draw the page of a run again",
    "compare": "put runs side by side",
    "status": "say where a run and its jobs stand",
    "export": "write a trained model to one file",
    "model": "say what is in a file of trained weights",
    "submission": "write the file that a challenge's server takes",
    "spec": "print an experiment with all its settings, explain a key, or copy a shipped spec",
    "plan": "say how a spec fits a GPU",
    "sweep": "train a spec once for each line of a list of settings",
    "reproduce": "repeat a published experiment and compare",
    "submit": "submit a spec as a job of Slurm",
    "data": "make, convert, check, copy and measure data sets",
    "weights": "convert pretrained weights",
    "doctor": "look for what won't work on this machine, and how to fix it",
    "completion": "print a script that completes commands in a shell",
    "dev": "benchmarks, goldens and other tools of a checkout",
}
HELP_OPTIONS = ("-h", "--help", "help")
LOCAL_RANK = re.compile(r"--local[-_]rank=.*")
"""Option that DeepSpeed's launcher adds to a command; verbs that it starts take it."""


class Parser(argparse.ArgumentParser):
    """An argument parser that proposes the nearest option for one that it doesn't know."""

    def parse_args(self, args=None, namespace=None):
        """Parse as argparse does, with the nearest option in the error about an unknown one."""
        found, unknown = self.parse_known_args(args, namespace)
        # Unknown ones after parsing, because only then the options of all subcommands are known.
        if unknown:
            options = [option for parser in [self, *subparsers(self)] for option in parser._option_string_actions]
            near = [hint for word in unknown if word.startswith("--") and (hint := nearest(word, options))]
            self.error(f"unrecognized arguments: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
        return found


def start(verb: str | None = None) -> NoReturn:
    """Run the command line of this process and leave with its exit code. verb: the one, or group and command, that a
    script of tools/ stands for."""
    words = sys.argv[1:]
    command.run(lambda: main([*(verb.split() if verb else []), *words]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, that of this process by default, and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return command.exit_code(lambda: _run(words))


def _run(words: list[str]) -> int | None:
    # DeepSpeed's launcher puts its option before the verb of a module: it goes behind it.
    ranks = [word for word in words[:1] if LOCAL_RANK.fullmatch(word)]
    # No word at all is a question for help, but for a script a mistake: usage, and exit code 2.
    verb, *rest = words[len(ranks) :] or [""]
    name_program("adatad")
    if verb in HELP_OPTIONS or not verb:
        print(usage())
        return 0 if verb else command.BAD_INPUT
    if verb in ("--version", "-V"):
        from adatad import __version__

        print(f"adatad {__version__}")
        return 0
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        hint = f"did you mean adatad {near}?" if near else "adatad --help lists the commands"
        raise UserError(f"{verb!r} is no command of adatad; {hint}")
    name_program(f"adatad {verb}")
    # Errors from here on are said under the verb's name, those of its parser too.
    parser = parser_of(verb, early=True)
    args = parser.parse_args([*rest, *ranks])
    return args.action(args)


def parser_of(verb: str, early: bool = False) -> Parser:
    """Build the parser of a verb. early: the verb is about to run, so that it may act before slow imports."""
    if verb == "dev" and find_spec("adatad.dev") is None:
        raise UserError("adatad dev needs a checkout of the project: the installed package comes without")
    module = importlib.import_module(f"adatad.cli.{verb}")
    if early and hasattr(module, "before_imports"):
        module.before_imports()
    # Raw: the docstrings' examples stay a command a line.
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=f"adatad {verb}", description=module.__doc__, formatter_class=form)
    module.add_arguments(parser)
    return parser


def subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of a group's commands; none for a single verb."""
    # argparse has no public way to ask for them.
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [sub for group in groups for sub in group.choices.values()]


def usage() -> str:
    """Return the text of `adatad --help`. It imports no verb, so that it comes at once."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "usage: adatad COMMAND ...",
            "",
            "Temporal action detection in long videos, trained in little memory.",
            "",
            *lines,
            "",
            "adatad COMMAND --help says more, with examples; adatad --version.",
        ]
    )


def nearest(word: str, choices: Sequence[str] | dict[str, str]) -> str | None:
    """Return the choice that a mistyped word most resembles; None if none does."""
    # Not that of adatad.spec.text, whose package imports pydantic: --help and mistyped verbs answer at once.
    return next(iter(difflib.get_close_matches(word[:40], list(choices), n=1, cutoff=0.5)), None)
