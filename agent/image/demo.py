"""The images Pelamis brings along: pause for every sandbox, and three small ones to try a cluster with, built here.

Owns their content: `pelamis.local/demo:1` answers HTTP on port 80 with the pod's name, `docker.io/library/nginx:1.22`
is Debian's nginx, `docker.io/library/busybox:1` is busybox with all its commands. They are built from Debian packages
once: archives and packages are kept in the library folder, so a node without network can be given them. Called by the
agent at its start, by `pelamis up` and `pelamis image`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.image import archive, debian, importer, oci, pause
from agent.image.layer import Layer
from controlplane.machinery.paths import Paths
from cri_proto.client import Connection

DEMO = "pelamis.local/demo:1"
NGINX = "docker.io/library/nginx:1.22"
BUSYBOX = "docker.io/library/busybox:1"
EDITION = 3  # part of the archive's name: raise it when an image's content changes

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD = (b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n"
           b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
_GROUP = b"root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
_NSSWITCH = b"passwd: files\ngroup: files\nhosts: files dns\n"
# The files of each package that busybox needs to run and to resolve names.
_LIBRARIES = ("ld-linux*", "libc.so.6", "libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2")
_BUSYBOX_FILES = {"busybox": ("bin/busybox", "usr/bin/busybox"),
                  "libc6": (*(f"{folder}/*-linux-gnu*/{name}" for folder in ("lib", "usr/lib") for name in _LIBRARIES),
                            "lib64/ld-linux*", "usr/lib64/ld-linux*", "lib/ld-linux*")}
# What Debian's nginx needs to start: the C library and what the program is linked with.
_NGINX_PACKAGES = ("libc6", "libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g", "nginx", "nginx-common")
_NGINX_CONF = b"""\
user www-data;
worker_processes auto;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    sendfile on;
    server {
        listen 80;
        root /usr/share/nginx/html;
        index index.html;
    }
}
"""
_WELCOME = b"""\
<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1></body></html>
"""
# Every page is the pod's host name, which is its name: enough to see where a Service sends a connection. The first
# process of a container must handle SIGTERM itself, or it is ignored.
_SERVE = b"""\
#!/bin/sh
mkdir -p /www
hostname > /www/index.html
echo "demo: serving $(hostname) on port ${PORT:-80}"
httpd -f -v -p "${PORT:-80}" -h /www &
trap 'kill $!; exit' TERM INT
wait $!
"""


def base(kept: Path) -> Layer:
    """Busybox with a link for each of its commands, the usual folders, users and groups."""
    layer = Layer(merged_usr=True)
    _busybox(layer, kept)
    layer.file("etc/passwd", _PASSWD)
    layer.file("etc/group", _GROUP)
    layer.file("etc/nsswitch.conf", _NSSWITCH)
    for folder, mode in (("root", 0o700), ("tmp", 0o1777), ("var/tmp", 0o1777), ("var/log", 0o755), ("run", 0o755),
                         ("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("usr/sbin", 0o755)):
        layer.directory(folder, mode)
    return layer


def _busybox(layer: Layer, kept: Path) -> None:
    """Debian's busybox, with the C library it resolves names with: linked statically it cannot."""
    with tempfile.TemporaryDirectory() as scratch:
        for package, wanted in _BUSYBOX_FILES.items():
            root = Path(scratch, package)
            debian.extract(package, root, kept)
            for pattern in wanted:
                for path in sorted(root.glob(pattern)):
                    place = path.relative_to(root)
                    if path.is_symlink():
                        layer.link(place, os.readlink(path))
                    else:
                        layer.file(place, path.read_bytes(), 0o755)
        program = next(p for p in (Path(scratch, "busybox/bin/busybox"), Path(scratch, "busybox/usr/bin/busybox"))
                       if p.exists())
        listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True, timeout=10).stdout
    for command in listed.split():
        if command != "busybox":
            layer.link(f"bin/{command}", "busybox")


def _busybox_image(kept: Path) -> oci.Image:
    return oci.build([BUSYBOX], [base(kept).packed()], {"Cmd": ["sh"], "Env": [PATH], "WorkingDir": "/"})


def _demo_image(kept: Path) -> oci.Image:
    layer = Layer(merged_usr=True)
    layer.file("usr/local/bin/demo", _SERVE, 0o755)
    return oci.build([DEMO], [base(kept).packed(), layer.packed()], {
        "Cmd": ["/usr/local/bin/demo"], "Env": [PATH], "WorkingDir": "/", "ExposedPorts": {"80/tcp": {}}})


def _nginx_image(kept: Path) -> oci.Image:
    layer = Layer(merged_usr=True)
    debian.unpack(layer, _NGINX_PACKAGES, kept)
    layer.file("etc/nginx/nginx.conf", _NGINX_CONF)
    layer.file("usr/share/nginx/html/index.html", _WELCOME)
    for folder in ("var/log/nginx", "var/lib/nginx", "var/cache/nginx"):
        layer.directory(folder, 0o755)
    layer.link("var/log/nginx/access.log", "/dev/stdout")
    layer.link("var/log/nginx/error.log", "/dev/stderr")
    return oci.build([NGINX], [base(kept).packed(), layer.packed()], {
        "Entrypoint": ["nginx"], "Cmd": ["-g", "daemon off;"], "Env": [PATH], "WorkingDir": "/",
        "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"})


BUILDERS: dict[str, Callable[[Path], oci.Image]] = {
    pause.NAME: lambda kept: pause.image(), DEMO: _demo_image, BUSYBOX: _busybox_image, NGINX: _nginx_image}


def built(name: str, paths: Paths) -> Path:
    """The archive of the image called `name` (a key of BUILDERS), built unless it is kept from before."""
    folder = paths.lib / "images"
    file = folder / f"{name.replace('/', '_').replace(':', '_')}.{oci.architecture()}.{EDITION}.tar"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        archive.write(file, [BUILDERS[name](folder / "packages")])
    return file


async def install(connection: Connection, paths: Paths, names: Sequence[str] = tuple(BUILDERS)) -> list[str]:
    """Have the images called `names` on the node behind `connection`; those that were imported now."""
    absent = await importer.missing(connection, names)
    for name in absent:
        await importer.import_archive(connection, built(name, paths))
    return absent
