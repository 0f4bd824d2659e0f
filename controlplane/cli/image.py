"""`pelamis image build|import|list`: images without a registry and without another tool.

Owns the words of the command line; `agent.image` does the work. `build` packs files and Debian packages into an archive
or straight into this node, `import` takes over archives of `docker save` and other tools, `list` shows what the node
has.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlplane.cli import preflight
from controlplane.cli.output import columns, say

if TYPE_CHECKING:
    from controlplane.machinery.paths import Paths
    from cri_proto.client import Connection

EXAMPLES = ("image list",
            "image import app.tar",
            "image build -t lab/web:1 --busybox --from-files site --cmd httpd -f -h /www")


def register(subparsers: Any) -> None:
    command = subparsers.add_parser("image", help="build, import and list container images")
    parts = command.add_subparsers(dest="part", metavar="PART", required=True)
    build = parts.add_parser("build", help="make an image of files and Debian packages")
    build.add_argument("-t", "--tag", required=True, metavar="NAME:TAG")
    build.add_argument("--from-files", action="append", default=[], type=Path, metavar="DIR",
                       help="everything in this folder; may be repeated, one layer each")
    build.add_argument("--deb", action="append", default=[], metavar="PACKAGE",
                       help="a Debian package's files, without running its scripts; may be repeated")
    build.add_argument("--depends", action="store_true", help="also everything the packages depend on")
    build.add_argument("--busybox", action="store_true", help="start from busybox: a shell and the usual commands")
    build.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    build.add_argument("--user", default="")
    build.add_argument("--workdir", default="/")
    build.add_argument("--port", action="append", default=[], type=int)
    build.add_argument("-o", "--output", type=Path, metavar="FILE", help="write an archive instead of importing")
    build.add_argument("--entrypoint", default="", metavar="PATH")
    build.add_argument("--cmd", nargs=argparse.REMAINDER, default=[], metavar="WORD", help="must come last")
    take = parts.add_parser("import", help="take over the images of an archive")
    take.add_argument("file", nargs="+", type=Path)
    listed = parts.add_parser("list", help="the images of this node")
    for part in (take, listed):
        part.set_defaults(root=True)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.part == "build":
        return _build(args)
    return asyncio.run(_import(args.file) if args.part == "import" else _list())


def _socket(paths: Paths) -> Path:
    """Where this node's runtime answers: another than our own where the node was installed so."""
    from controlplane.cli import settings
    kept = settings.load(paths.etc / "node.json")
    return Path(kept.runtime) if kept is not None and kept.runtime else paths.containerd_socket


def _build(args: argparse.Namespace) -> int:
    from agent.image import archive, debian, demo, oci
    from agent.image.layer import Layer
    from agent.image.reference import ImageError, normalise
    from controlplane.machinery.errors import Finding
    from controlplane.machinery.paths import Paths

    paths = Paths.from_environment()
    try:
        name = normalise(args.tag)
    except ImageError as error:
        raise Finding(error.message, fix="give a name such as example.org/team/app:1") from error
    kept = paths.lib / "images/packages"
    layers = [demo.base(kept)] if args.busybox else []
    if args.deb:
        layer = Layer(merged_usr=True)
        debian.unpack(layer, debian.closure(args.deb) if args.depends else args.deb, kept)
        layers.append(layer)
    for folder in args.from_files:
        if not folder.is_dir():
            raise Finding(f"{folder} is no folder", fix="give a folder whose content becomes the image's /")
        layer = Layer(merged_usr=bool(args.deb or args.busybox))
        layer.tree(folder)
        layers.append(layer)
    if not layers:
        raise Finding("nothing to build from", fix="give --from-files DIR, --deb PACKAGE or --busybox")
    config: dict[str, Any] = {"Env": args.env or [demo.PATH], "WorkingDir": args.workdir, "Cmd": args.cmd}
    config |= {"User": args.user} if args.user else {}
    config |= {"Entrypoint": [args.entrypoint]} if args.entrypoint else {}
    config |= {"ExposedPorts": {f"{port}/tcp": {} for port in args.port}} if args.port else {}
    image = oci.build([name], [layer.packed() for layer in layers], config)
    if args.output is not None:
        archive.write(args.output, [image])
        say(f"{name} {image.manifest.digest} in {args.output}")
        return 0
    preflight.check_root()
    return asyncio.run(_hand_over(image))


@asynccontextmanager
async def _runtime() -> AsyncIterator[Connection]:
    """This node's runtime. Raises Finding when there is none."""
    from controlplane.machinery.errors import Finding
    from controlplane.machinery.paths import Paths
    from cri_proto.client import Connection

    socket = _socket(Paths.from_environment())
    if not socket.is_socket():
        raise Finding(f"no container runtime answers at {socket}", "images are kept by that of a node",
                      "./pelamis up; or write an archive, with --output")
    async with Connection(socket) as connection:
        yield connection


async def _hand_over(image: Any) -> int:
    from agent.image.importer import import_image

    async with _runtime() as connection:
        for name in await import_image(connection, image):
            say(f"{name} {image.manifest.digest}")
    return 0


async def _import(files: list[Path]) -> int:
    from agent.image.importer import import_archive

    async with _runtime() as connection:
        for file in files:
            for name in await import_archive(connection, file):
                say(name)
    return 0


async def _list() -> int:
    from agent.image.reference import ImageError
    from agent.kubelet.images.images import Images
    from controlplane.machinery.errors import Finding

    async with _runtime() as connection:
        try:
            found = await Images(connection).list()
        except ImageError as error:
            raise Finding("the node's images cannot be listed", error.message, "./pelamis status") from error
    rows = [[tag, image.id.removeprefix("sha256:")[:12], f"{image.size / 1e6:.1f} MB"]
            for image in found for tag in image.tags or image.digests or ("<none>",)]
    say(columns([["IMAGE", "ID", "SIZE"], *sorted(rows)]))
    return 0
