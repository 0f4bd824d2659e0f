"""`pelamis bundle create|check`: one file from which hosts without a network are installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from controlplane.cli.output import good, say, step

EXAMPLES = ("bundle create --image app.tar",)


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("bundle", help="pack everything an install without a network needs")
    verbs = parser.add_subparsers(dest="verb", metavar="create|check", required=True)
    create = verbs.add_parser("create", help="fetch and pack: needs a network, on a host of the same Debian release")
    create.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: pelamis-VERSION.tar")
    create.add_argument("--image", action="append", default=[], type=Path, metavar="FILE",
                        help="an image archive (docker save) to take along; may be repeated")
    create.add_argument("--without-packages", action="store_true", help="the hosts have containerd already")
    check = verbs.add_parser("check", help="compare an unpacked bundle with its digests")
    check.add_argument("folder", type=Path)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from controlplane.hosts import bundle, product
    if args.verb == "check":
        bundle.check(args.folder)
        say(good("The bundle is what was packed."))
        return 0
    name = f"pelamis-{product.version()}"
    output = args.output or Path(f"{name}.tar")
    bundle.create(name, output.absolute(), args.image, step, not args.without_packages)
    say(good(f"{output}") + f", {output.stat().st_size >> 20} MiB. On a host without a network:")
    say(f"  tar -xf {output.name}; cd {name}; ./pelamis install server --bundle bundle")
    return 0
