"""The arguments that commands with a spec share, and the spec that they stand for.

`add_spec_arguments` and its like declare them; `load_from_arguments` goes from there to `adatad.spec.load`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, get_args

from adatad.cli.command import BAD_INPUT, say, whole_number
from adatad.spec.deepspeed_file import DeepSpeedFileError, engine_of
from adatad.spec.document import Document, DocumentError, Key, parse_value
from adatad.spec.experiments import find_spec_path
from adatad.spec.load import SpecError, load_with_sources
from adatad.spec.numbers import MAX_COUNT
from adatad.spec.opentad import FLAGS
from adatad.spec.schema import EngineKind, Spec
from adatad.spec.text import PathError, cut, expand

SPEC_HELP = "YAML file of the experiment, or a name: demo/tia, thumos-s-768, OpenTAD's of a published row"


class _Elsewhere(argparse.Action):
    """A flag of other trainers that is none here: says what to write instead, and leaves with exit code 2."""

    def __call__(
        self, parser: argparse.ArgumentParser, _namespace: object, value: Any, option: str | None = None
    ) -> None:
        # A value that was given stands in the advice, which can then be pasted.
        asked, instead = FLAGS[str(option)]
        parser.error(f"{option}: is none of this command's options here; instead: {instead.format(value or asked)}")


def add_spec_arguments(
    parser: argparse.ArgumentParser, help_text: str = SPEC_HELP, optional: bool = False, with_id: bool = True
) -> None:
    """Add SPEC, which may be left out if it is optional, --overlay, --set, --cfg-options (OpenTAD's name for the same)
    and, for commands that name a run, --id."""
    # Only where the verb can find the spec itself, as in a checkpoint.
    parser.add_argument("spec", metavar="SPEC", nargs="?" if optional else None, help=help_text)
    parser.add_argument(
        "--overlay", dest="overlays", metavar="FILE", action="append", default=[],
        help="a YAML file over the spec, such as slurm/nodes/two.yaml; --set comes after it",
    )  # fmt: skip
    parser.add_argument(
        "--set", "--cfg-options", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="settings over those of the file, such as optimizer.backbone.custom.0.lr=1e-4",
    )  # fmt: skip
    if with_id:
        parser.add_argument(
            "--id", type=whole_number(0, MAX_COUNT), metavar="N",
            help="number of the run: it lives in runs/<spec name>/id<N>",
        )  # fmt: skip
    # Hidden options, so that the error says what to write instead of "unrecognized arguments".
    for flag in FLAGS:
        parser.add_argument(flag, nargs="?", action=_Elsewhere, help=argparse.SUPPRESS)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --deepspeed, and what DeepSpeed's launcher adds to a command."""
    parser.add_argument("--engine", choices=get_args(EngineKind), help="how ranks share the work (parallel.engine)")
    parser.add_argument(
        "--deepspeed", metavar="FILE",
        help="DeepSpeed's JSON file (parallel.deepspeed); without --engine, the engine is that of the file's stage",
    )  # fmt: skip
    # Taken and not used: the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=whole_number(-1, MAX_COUNT), help=argparse.SUPPRESS)


class _Device(argparse.Action):
    """An option that hides every GPU from this process and those that it starts.

    It acts while arguments are parsed, because torch, which is imported later, looks for GPUs once.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        namespace.device = value


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device, for commands that compute."""
    parser.add_argument(
        "--device", choices=("cpu",), action=_Device,
        help="compute on the CPU, also where there is a GPU; without it a GPU that can't be used is an error",
    )  # fmt: skip


def overrides_from(args: argparse.Namespace) -> Sequence[str]:
    """Return the overrides that the arguments stand for. Raises DeepSpeedFileError if --deepspeed can't be read."""
    overrides = [*args.overrides]
    # Verbs without add_engine_arguments, or without --id, have no such attributes.
    engine, file = getattr(args, "engine", None), getattr(args, "deepspeed", None)
    if file is not None:
        # The overrides go through the same parser as --set, so that messages and sources name the key.
        overrides.append(f"parallel.deepspeed={_as_value(file)}")
        engine = engine or engine_of(_expanded(file, "--deepspeed"))
    if engine is not None:
        overrides.append(f"parallel.engine={engine}")
    if getattr(args, "id", None) is not None:
        overrides.append(f"run.id={args.id}")
    return overrides


def _as_value(text: str) -> str:
    """Return text as an override has it: quoted where YAML would take it for something else, as null or a: b."""
    try:
        plain = parse_value(text) == text
    except DocumentError:
        plain = False
    return text if plain else json.dumps(text, ensure_ascii=False)


def _expanded(path: str, option: str) -> str:
    """Return a path of the command line with its ~, which shells leave behind an =, filled in. Raises SpecError."""
    try:
        return expand(path)
    except PathError as error:
        raise SpecError([f"{option} {cut(path)}: {error}"]) from error


def spec_path(text: str, quiet: bool = False) -> str:
    """Return the spec file that a SPEC argument means; a line on stderr says so where it is a name, unless quiet."""
    path, note = find_spec_path(text)
    # Every rank reads its own command line: the first one says it.
    if note and not quiet and os.environ.get("RANK", "0") == "0":
        print(f"note: {note}", file=sys.stderr)
    return path


def load_from_arguments(
    args: argparse.Namespace, check_files: bool = True, unread: Sequence[Key] = ()
) -> tuple[Spec, Document]:
    """Return the spec that the arguments name, and where its values came from. Prints all that is wrong with it, and
    leaves with exit code 2 then. unread: keys whose files needn't be there."""
    try:
        overlays = [_expanded(overlay, "--overlay") for overlay in args.overlays]
        return load_with_sources(spec_path(args.spec), overrides_from(args), check_files, overlays, unread)
    except (SpecError, DeepSpeedFileError) as error:
        # One problem is said on the command's line; of several, each has its own.
        lines = str(error).splitlines()
        say(lines[0] if len(lines) == 1 else "\n".join([f"{cut(args.spec)} can't be used:", *lines]))
        sys.exit(BAD_INPUT)


def spec_from_arguments(args: argparse.Namespace, check_files: bool = True, unread: Sequence[Key] = ()) -> Spec:
    """Return the spec that the arguments name. Prints all that is wrong with it and leaves with exit code 2. unread:
    keys whose files needn't be there."""
    return load_from_arguments(args, check_files, unread)[0]
