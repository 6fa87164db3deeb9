"""Print a script that completes commands and options in a shell.

source <(adatad completion bash)                                   # in ~/.bashrc
source <(adatad completion zsh)                                    # in ~/.zshrc
adatad completion fish > ~/.config/fish/completions/adatad.fish
"""

from __future__ import annotations

import argparse

SHELLS = ("bash", "zsh", "fish")
BASH = """_adatad() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=
  case "$COMP_CWORD ${{COMP_WORDS[1]-}} ${{COMP_WORDS[2]-}}" in
    1\\ *) words="{verbs}" ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _adatad adatad
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `adatad completion`."""
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(action=completion)


def completion(args: argparse.Namespace) -> int:
    """Run `adatad completion`; returns its exit code."""
    print(script(args.shell), end="")
    return 0


def script(shell: str) -> str:
    """Return the script for a shell. It holds all words, so that completing starts no Python."""
    words = all_words()
    if shell == "fish":
        return _fish(words)
    # The first case that fits counts: those of a group's commands stand before the group's own.
    ordered = sorted(words, key=lambda key: -len(key.split()))
    cases = []
    for key in ordered:
        if " " in key:
            cases.append(f'    [3-9]*\\ {key.replace(" ", chr(92) + " ")}) words="{" ".join(words[key])}" ;;')
        elif key:
            cases.append(f'    *\\ {key}\\ *) words="{" ".join(words[key])}" ;;')
    prelude = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return prelude + BASH.format(verbs=" ".join(words[""]), cases="\n".join(cases))


def all_words() -> dict[str, list[str]]:
    """Return the words that may follow: after "" the verbs, after a verb its options or commands, after a group's
    command ("data check") its options."""
    from adatad.cli.main import VERBS, parser_of
    from adatad.errors import UserError

    words = {"": [*VERBS, "--help", "--version"]}
    for verb in VERBS:
        try:
            parser = parser_of(verb)
        except UserError:
            # Tools of a checkout, in an installation.
            continue
        words[verb] = _options(parser)
        for group in (action for action in parser._actions if isinstance(action, argparse._SubParsersAction)):
            words[verb] = [*group.choices, *words[verb]]
            words |= {f"{verb} {name}": _options(sub) for name, sub in group.choices.items()}
        choices = [str(choice) for action in parser._get_positional_actions() for choice in action.choices or ()]
        words[verb] = list(dict.fromkeys([*choices, *words[verb]]))
    return words


def _options(parser: argparse.ArgumentParser) -> list[str]:
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [option for action in shown for option in action.option_strings if option.startswith("--")]


def _fish(words: dict[str, list[str]]) -> str:
    from adatad.cli.main import VERBS

    lines = [
        f"complete -c adatad -n __fish_use_subcommand -f -a {verb} -d '{text.replace(chr(39), chr(92) + chr(39))}'"
        for verb, text in VERBS.items()
    ]
    for key, following in words.items():
        verb, _, name = key.partition(" ")
        when = f"__fish_seen_subcommand_from {verb}" + f"; and __fish_seen_subcommand_from {name}" * bool(name)
        for word in following if key else []:
            kind = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c adatad -n '{when}' {kind}")
    return "\n".join(lines) + "\n"
