"""`pelamis`: parses the command line and calls the one module of the command.

Each command is a module with `register(subparsers)` and `run(args) -> int`; modules import what they need inside `run`,
so that `pelamis status` does not pay for gRPC. A `Finding` is printed as its sentence and its fix, exit code 1.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys

from controlplane.machinery.errors import Finding

COMMANDS = ("up", "down", "install", "token", "certs", "upgrade", "reset", "bundle", "support", "prepare", "doctor",
            "snapshot", "store", "status", "kubeconfig", "image", "test", "why", "whatif", "simulate", "bench", "trace")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="pelamis", description="Kubernetes in readable Python.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"controlplane.cli.{name}").register(commands)
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except Finding as finding:
        print(f"pelamis: {finding}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pelamis: interrupted; the same command continues where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"pelamis: the disk is full: {error.filename or 'a file could not be written'}\n"
              "  fix: free some space (df -h), then run the same command again", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
