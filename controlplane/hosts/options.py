"""The configuration files people edit: /etc/pelamis/<process>.conf, with every flag of the process explained.

Owns their form: one variable FLAGS, and above it a comment per flag, taken from the process's own parser, so that the
file never tells of a flag that is not there. Promises that a file somebody has is never overwritten: the newest
explanation lies beside it as `<process>.conf.new` when they differ. `render` is pure. Called by `install`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Sequence

from controlplane.cli.components import Component
from controlplane.hosts.layout import Layout, unit

WIDTH = 116


def render(name: str, parser: argparse.ArgumentParser, argv: Sequence[str]) -> str:
    """The file for a process; `argv` are the flags its unit gives it already."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in argv if word.startswith("--")}
    lines = [f"# Flags of {unit(name)}: put yours into FLAGS, separated by spaces, then",
             f"#   systemctl restart {unit(name)}",
             "# The last of two equal flags counts, so yours win over those of the unit.", "#"]
    for action in parser._actions:
        flag = next((o for o in action.option_strings if o.startswith("--")), "")
        if not flag or flag == "--help":
            continue
        value = "" if action.nargs == 0 else "=" + str(action.metavar or action.dest.upper())
        lines.append(f"# {flag}{value}")
        about = (action.help or "").replace("%%", "%")
        if flag in given:
            about += f" (the unit says {given[flag]})" if given[flag] else " (the unit says so)"
        elif action.default not in (None, "", False, argparse.SUPPRESS) and "default" not in about:
            about += f" (default {action.default})"
        lines += textwrap.wrap(about.strip(), WIDTH, initial_indent="#     ", subsequent_indent="#     ")
    return "\n".join([*lines, 'FLAGS=""', ""])


def write(layout: Layout, components: Sequence[Component]) -> None:
    """Put the file of each process where its unit reads it, unless somebody changed it."""
    for component in components:
        parser = PARSERS.get(component.name)
        if parser is None:
            continue
        path = layout.paths.etc / f"{component.name}.conf"
        text = render(component.name, parser(layout), component.argv)
        if path.exists() and path.read_text() != text:
            path = path.with_suffix(".conf.new")
        path.write_text(text)


def _apiserver(layout: Layout) -> argparse.ArgumentParser:
    from controlplane.apiserver.config import parser
    return parser()


def _controllers(layout: Layout) -> argparse.ArgumentParser:
    from controlplane.controllers.__main__ import parser
    return parser(layout.paths)


def _agent(layout: Layout) -> argparse.ArgumentParser:
    from agent.kubelet.config import parser
    return parser(layout.paths)


PARSERS: dict[str, Callable[[Layout], argparse.ArgumentParser]] = {
    "apiserver": _apiserver, "controllers": _controllers, "agent": _agent}
