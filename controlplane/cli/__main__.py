"""`pelamis`: parses the command line and calls the one module of the command.

Each command is a module with `register(subparsers)` and `run(args) -> int`, whose parser sets `root` when nobody else
may run it and `checkout` when it needs the tests' code, and with `EXAMPLES` where a line says more than a sentence.
Modules import what they need inside `run`, so that `pelamis status` does not pay for gRPC. A `Finding` is printed as
its sentence and its fix, exit code 1; a command line that means nothing is exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from controlplane.cli import preflight
from controlplane.machinery.errors import Finding

GROUPS = {
    "a cluster on this machine": ("up", "down", "status", "kubeconfig", "image"),
    "hosts that stay": ("install", "token", "upgrade", "reset", "certs", "prepare", "snapshot", "store", "bundle"),
    "when something does not work": ("why", "trace", "doctor", "support"),
    "before it is tried": ("whatif", "simulate"),
    "of Pelamis itself": ("test", "bench"),
}
COMMANDS = tuple(name for names in GROUPS.values() for name in names)
Subparsers = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """Says in two lines what is wrong with a command line, and what was perhaps meant."""

    def error(self, message: str) -> Any:
        self.exit(2, f"pelamis: {message}\n  fix: {self.prog} --help\n")

    def unknown(self, word: str) -> Any:
        """`word` is none of our options."""
        options = [o for parser in _family(self) for action in parser._actions for o in action.option_strings]
        self.error(f"{self.prog.removeprefix('pelamis ')} knows no {word}" + meant(word.partition("=")[0], options))


def meant(word: str, known: list[str] | tuple[str, ...]) -> str:
    """The nearest of what is known, as the end of a sentence; "" when nothing is near. Pure."""
    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def parser() -> tuple[Parser, Subparsers]:
    """The whole command line, and the parsers of its commands."""
    top = Parser(prog="pelamis", usage="pelamis COMMAND …", formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="store_true", help="say which version this is")
    commands = top.add_subparsers(dest="command", prog="pelamis", metavar="COMMAND", help=argparse.SUPPRESS)
    for name in COMMANDS:
        module = importlib.import_module(f"controlplane.cli.{name}")
        module.register(commands)
        if examples := getattr(module, "EXAMPLES", ()):
            made = commands.choices[name]
            made.formatter_class = argparse.RawDescriptionHelpFormatter
            made.epilog = "examples:\n" + "\n".join(f"  pelamis {line}" for line in examples)
    top.description = "Kubernetes in readable Python.\n\n" + _overview(_describe(commands))
    top.epilog = "pelamis COMMAND --help says more, docs/hosts.md and the README all."
    return top, commands


def _describe(commands: Subparsers) -> dict[str, str]:
    """Have each command say in its own help what the list says of it; command → sentence."""
    told = {str(action.dest): str(action.help) for action in commands._choices_actions}
    for name, made in commands.choices.items():
        made.description = made.description or told[name][:1].upper() + told[name][1:] + "."
        for inner in _below(made):
            _describe(inner)
    return told


def _overview(told: dict[str, str]) -> str:
    return "\n".join(line for title, names in GROUPS.items() for line in (
        f"{title}:", *(f"  {name:<11} {told[name]}" for name in names)))


def _below(made: argparse.ArgumentParser) -> Iterator[Subparsers]:
    yield from (action for action in made._actions if isinstance(action, argparse._SubParsersAction))


def _family(made: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield made
    for inner in _below(made):
        for child in inner.choices.values():
            yield from _family(child)


def parse(words: list[str]) -> argparse.Namespace:
    """The command and its flags. Ends the process for a command line that means nothing, or that asks for help."""
    top, commands = parser()
    if words[:1] in (["help"], ["version"]):
        words = [*words[1:], f"--{words[0]}"]
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        top.error(f'there is no command "{words[0]}"' + meant(words[0], COMMANDS))
    args, rest = top.parse_known_args(words or ["--help"])
    if rest:
        commands.choices[args.command].unknown(rest[0]) if args.command else top.unknown(rest[0])
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        if args.version or not args.command:
            return _version()
        if getattr(args, "root", False):
            preflight.check_root()
        if getattr(args, "checkout", False):
            preflight.check_checkout()
        return int(args.run(args) or 0)
    except Finding as finding:
        print(f"pelamis: {finding}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pelamis: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except PermissionError as error:
        if preflight.is_root():
            raise
        print(f"pelamis: {preflight.only_root(str(error.filename or ''))}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"pelamis: the disk is full: {error.filename or 'a file could not be written'}\n"
              "  fix: free some space (df -h), then run the same command again", file=sys.stderr)
        return 1


def _version() -> int:
    from controlplane.apiserver.health import GIT_VERSION
    from controlplane.hosts import product
    print(f"Pelamis {product.version()}, Kubernetes {GIT_VERSION.partition('+')[0]}, Python "
          f"{sys.version.partition(' ')[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
