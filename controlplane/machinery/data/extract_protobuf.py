"""Makes the committed field tables `protobuf.gz` from Debian's packages of Kubernetes' Go sources.

Reads the `generated.proto` files (numbers and types) together with the Go structs (JSON names, which fields are
embedded, which zero values mean something) of the groups and versions in `machinery.resources`, and writes gzip over
sorted lines `message TAB compact JSON`. A message is `[[number, name, type, flags], …]` or, for a Go slice or map type,
`["list", type, flags]`. Types: `s` text, `b` bytes, `t` bool, `i` signed, `u` unsigned, `d` double, else a message, of
the same package when it begins with a dot. Flags: `r` repeated, `m` map by text, `k` keep a zero value, `n` embedded,
`z` drop when empty, `v` printed by Go even when nothing was set (a structure by value, a list or map without
`omitempty`). The same input gives the same bytes. Never imported by the product.

Usage: `apt-get download golang-k8s-api-dev golang-k8s-apimachinery-dev golang-k8s-apiextensions-apiserver-dev` (0.36),
`dpkg-deb -x` each into a folder, then `python -m controlplane.machinery.data.extract_protobuf FOLDER`.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from controlplane.machinery import resources

TARGET = Path(__file__).parent / "protobuf.gz"
SOURCES = "usr/share/gocode/src/k8s.io"
META = "k8s.io.apimachinery.pkg.apis.meta.v1"

_SCALARS = {"string": "s", "bytes": "b", "bool": "t", "int32": "i", "int64": "i", "uint32": "u", "uint64": "u",
            "double": "d"}
_FIELD = re.compile(r"(optional|repeated)?\s*(map<\s*\w+\s*,\s*[\w.]+\s*>|\.?[\w.]+)\s+(\w+)\s*=\s*(\d+)\s*;")
_STRUCT = re.compile(r"^type (\w+) struct \{(.*?)^\}", re.M | re.S)
_TAGGED = re.compile(r"^\s*(?:\w+\s+)?(\S+)\s+`(.*?)`", re.M)

# Debian packages no kube-aggregator: its few messages by hand.
AGGREGATOR = "k8s.io.kube_aggregator.pkg.apis.apiregistration.v1"
_SERVICES: dict[str, list[object]] = {
    "APIService": [[1, "metadata", f"{META}.ObjectMeta", ""], [2, "spec", ".APIServiceSpec", ""],
                   [3, "status", ".APIServiceStatus", ""]],
    "APIServiceCondition": [[1, "type", "s", "k"], [2, "status", "s", "k"],
                            [3, "lastTransitionTime", f"{META}.Time", ""], [4, "reason", "s", ""],
                            [5, "message", "s", ""]],
    "APIServiceSpec": [[1, "service", ".ServiceReference", "k"], [2, "group", "s", ""], [3, "version", "s", ""],
                       [4, "insecureSkipTLSVerify", "t", ""], [5, "caBundle", "b", ""],
                       [7, "groupPriorityMinimum", "i", "k"], [8, "versionPriority", "i", "k"]],
    "APIServiceStatus": [[1, "conditions", ".APIServiceCondition", "r"]],
    "ServiceReference": [[1, "namespace", "s", ""], [2, "name", "s", ""], [3, "port", "i", "k"]]}

Field = list[object]
GoField = tuple[str, str, bool]  # JSON name, flags of the tag, pointer


def go_fields(folder: Path) -> dict[str, dict[str, GoField]]:
    """The structs of a Go package: by type and field number."""
    found: dict[str, dict[str, GoField]] = {}
    for path in sorted(folder.glob("*.go")):
        if path.name.endswith("_test.go") or path.name.startswith("zz_") or path.name.endswith(".pb.go"):
            continue
        source = re.sub(r"//.*", "", path.read_text())
        for struct in _STRUCT.finditer(source):
            fields = found.setdefault(struct[1], {})
            for kind, tags in _TAGGED.findall(struct[2]):
                number = re.search(r'protobuf:"\w+,(\d+)', tags)
                shown = re.search(r'json:"([^"]*)"', tags)
                if number:
                    fields[number[1]] = (*(shown[1] if shown else "").partition(",")[::2], kind.startswith("*"))
    return found


def _type(text: str, package: str) -> str:
    if text in _SCALARS:
        return _SCALARS[text]
    text = text.lstrip(".")
    if text.startswith(package + "."):
        return text[len(package):]
    return text if "." in text else "." + text


def _fields(body: str, package: str, struct: dict[str, GoField] | None) -> list[Field]:
    rows: list[Field] = []
    for label, kind, name, number in _FIELD.findall(body):
        flags = "r" if label == "repeated" else ""
        if kind.startswith("map<"):
            kind, flags = kind[:-1].partition(",")[2].strip(), "m"
        shown, options, pointer = (struct or {}).get(number, (name, "", True))
        words = options.split(",")
        if "inline" in words:
            flags += "n"
        if pointer or "omitempty" not in words:
            flags += "k"
        if "omitzero" in words and not pointer:
            flags += "z"
        elif not pointer and (kind not in _SCALARS if flags[:1] not in ("r", "m") else "omitempty" not in words):
            flags += "v"
        rows.append([int(number), shown or name, _type(kind, package), flags])
    return rows


def messages(root: Path) -> Iterator[tuple[str, list[object]]]:
    """Every message of every package under `root`."""
    for path in sorted(root.rglob("generated.proto")):
        text = re.sub(r"//.*", "", path.read_text())
        found = re.search(r"^package ([\w.]+);", text, re.M)
        if found is None:
            continue
        package, structs = found[1], go_fields(path.parent)
        for name, body in re.findall(r"^message (\w+) \{(.*?)^\}", text, re.M | re.S):
            fields = _fields(body, package, structs.get(name))
            if name not in structs and len(fields) == 1 and fields[0][1] == "items":
                yield f"{package}.{name}", ["list", fields[0][2], fields[0][3]]
            else:
                yield f"{package}.{name}", list(fields)


def package_of(group: str, version: str) -> str:
    """The protobuf package of an API group's version."""
    if group == "apiextensions.k8s.io":
        return f"k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.{version}"
    if group == "apiregistration.k8s.io":
        return AGGREGATOR
    return f"k8s.io.api.{group.split('.')[0] or 'core'}.{version}"


def reachable(table: dict[str, list[object]]) -> set[str]:
    """The messages of the served groups and of meta/v1, and all they hold."""
    packages = {package_of(e.group, e.version) for e in resources.BUILTIN} | {META}
    for gv in resources._TABLE:
        group, _, version = gv.rpartition("/")
        packages.add(package_of(group, version))
    queue = [name for name in table if name.rpartition(".")[0] in packages]
    queue.append("k8s.io.apimachinery.pkg.runtime.Unknown")
    seen: set[str] = set()
    while queue:
        name = queue.pop()
        if name in seen or name not in table:
            continue
        seen.add(name)
        package = name.rpartition(".")[0]
        rows = table[name]
        kinds = [rows[1]] if rows and rows[0] == "list" else [row[2] for row in rows if isinstance(row, list)]
        queue += [package + str(kind) if str(kind).startswith(".") else str(kind) for kind in kinds]
    return seen


def main(folder: str) -> None:
    table = dict(messages(Path(folder) / SOURCES))
    table |= {f"{AGGREGATOR}.{name}": rows for name, rows in _SERVICES.items()}
    kept = sorted(reachable(table))
    text = "".join(f"{name}\t{json.dumps(table[name], separators=(',', ':'))}\n" for name in kept)
    TARGET.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{TARGET.name}: {len(kept)} messages, {len(text)} bytes, {TARGET.stat().st_size} compressed")


if __name__ == "__main__":
    main(sys.argv[1])
