"""Static types of objects for CEL: what an expression gets wrong before it ever sees an object.

Owns the translation of schema nodes (OpenAPI definitions of built-in kinds, structural schemas of custom ones) into
protobuf messages, which is the form in which the CEL library's checker knows types with fields. Only for checking:
programs are evaluated over plain JSON values by `expression`. What a schema leaves open is dynamic and never a fault.
Pure. Called by the checks of definitions' rules and by the type checking of admission policies; loads the CEL library.

Upstream: k8s.io/apiserver/pkg/cel/{common,openapi}, k8s.io/apiserver/pkg/admission/plugin/policy/validating.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from controlplane.machinery.cel import expression as cel

Node = dict[str, Any]
Resolve = Callable[[str], Node]
PACKAGE = "t"
_DYN = ".google.protobuf.Value"
_SCALARS = {"integer": ("INT64", ""), "number": ("DOUBLE", ""), "boolean": ("BOOL", ""), "string": ("STRING", "")}
_FORMATS = {"byte": ("BYTES", ""), "date-time": ("MESSAGE", ".google.protobuf.Timestamp"),
            "date": ("MESSAGE", ".google.protobuf.Timestamp"), "duration": ("MESSAGE", ".google.protobuf.Duration")}
_OPEN = ("x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields", "nullable")
_RESERVED = frozenset(("true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function",
                       "if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while"))
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_IN_STRUCT = re.compile(r" not found in struct '[^']*'")
_MESSAGE = re.compile(rf"\b{PACKAGE}\.M\d+\b")
# What the library says otherwise than cel-go does.
_WORDS = ((re.compile(r"expression of type '([^']*)' cannot be the operand of a select operation"),
           r"type '\1' does not support field selection"),
          (re.compile("cannot be the range of a comprehension"), "cannot be range of a comprehension"))
_OVERLOAD = re.compile(r"found no matching overload for '(\w+)' applied to '\((.*)\)'(\n \| (.*)\n \| (\.*)\^)")
NAMES = {"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}
_RESOURCE = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}


def _worded(text: str) -> str:
    """What is wrong with an expression, in cel-go's words."""
    for said, words in _WORDS:
        text = said.sub(words, text)
    return _OVERLOAD.sub(_on_receiver, text)


def _on_receiver(found: re.Match[str]) -> str:
    """A function that was called on something has that before a dot."""
    name, arguments, shown, line, dots = found.groups()
    if not line[:len(dots)].rstrip().removesuffix(name).endswith("."):
        return found[0]
    depth, end = 0, len(arguments)
    for at, sign in enumerate(arguments):
        depth += (sign == "(") - (sign == ")")
        if sign == "," and not depth:
            end = at
            break
    return (f"found no matching overload for '{name}' applied to '{arguments[:end]}.({arguments[end + 1:].strip()})'"
            f"{shown}")


def escaped(name: str) -> str:
    """A property's name as an identifier of CEL."""
    if name in _RESERVED:
        return f"__{name}__"
    for sign, word in (("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")):
        name = name.replace(sign, word)
    return name


def resource(node: Node, metadata: Node) -> Node:
    """A whole object's node: with the fields every object has."""
    return {**node, "type": "object", "properties": {**(node.get("properties") or {}), **_RESOURCE,
                                                     "metadata": metadata}}


class _Messages:
    """A file of messages; `kind_of` gives the field type and type name of a node and makes what it needs."""

    def __init__(self, resolve: Resolve) -> None:
        from google.protobuf import descriptor_pb2
        known = [f"google/protobuf/{name}.proto" for name in ("struct", "timestamp", "duration")]
        self.file = descriptor_pb2.FileDescriptorProto(name="types.proto", package=PACKAGE, syntax="proto3",
                                                       dependency=known)
        self._field = descriptor_pb2.FieldDescriptorProto
        self._resolve = resolve
        self._made: dict[str, str] = {}  # reference -> message
        self._kinds: dict[int, tuple[str, str]] = {}  # by the identity of a node

    def kind_of(self, node: Node) -> tuple[str, str]:
        if reference := node.get("$ref"):
            if reference in self._made:
                return "MESSAGE", self._made[reference]
            target = self._resolve(reference)
            if not target.get("properties"):
                return self.kind_of(target)
            return "MESSAGE", self._message(target, reference)
        if node.get("x-kubernetes-embedded-resource"):
            node = resource(node, NAMES)
        if any(node.get(key) for key in _OPEN) or node.get("format") in ("int-or-string", "quantity"):
            return "MESSAGE", _DYN
        kind = node.get("type") or ""
        if kind in _SCALARS:
            return _FORMATS.get(node.get("format") or "", _SCALARS[kind]) if kind == "string" else _SCALARS[kind]
        if kind == "array":
            return "LIST", ""
        if kind == "object" and node.get("additionalProperties"):
            return "MAP", ""
        if kind == "object" and ("properties" in node):
            return "MESSAGE", self._message(node)
        return "MESSAGE", _DYN

    def kind_once(self, node: Node) -> tuple[str, str]:
        """The same type for the same node: variables of one schema can be compared."""
        if id(node) not in self._kinds:
            self._kinds[id(node)] = self.kind_of(node)
        return self._kinds[id(node)]

    def _message(self, node: Node, reference: str = "") -> str:
        message = self.file.message_type.add(name=f"M{len(self.file.message_type)}")
        name = f".{PACKAGE}.{message.name}"
        if reference:
            self._made[reference] = name
        for key, sub in (node.get("properties") or {}).items():
            for shown in {key: 0, escaped(key): 0}:  # a word CEL reserves can still be selected
                if _IDENTIFIER.fullmatch(shown):
                    self._add(message, shown, sub)
        return name

    def _add(self, message: Any, name: str, node: Node) -> None:
        number = len(message.field) + 1
        kind, type_name = self.kind_of(node)
        label = self._field.LABEL_OPTIONAL
        if kind == "LIST":
            label = self._field.LABEL_REPEATED
            kind, type_name = self.inner(node.get("items"))
        elif kind == "MAP":
            label, type_name = self._field.LABEL_REPEATED, self._entry(message, name, node["additionalProperties"])
            kind = "MESSAGE"
        self._put(message, name, number, label, kind, type_name).json_name = f"f{number}"

    def _put(self, message: Any, name: str, number: int, label: int, kind: str, type_name: str) -> Any:
        made = message.field.add(name=name, number=number, label=label, type=getattr(self._field, f"TYPE_{kind}"))
        if type_name:
            made.type_name = type_name
        return made

    def inner(self, node: Any) -> tuple[str, str]:
        """The type of a list's items or a map's values; lists and maps within them are dynamic."""
        kind, type_name = self.kind_once(node) if isinstance(node, dict) else ("MESSAGE", _DYN)
        if kind == "LIST":
            return "MESSAGE", ".google.protobuf.ListValue"
        return ("MESSAGE", ".google.protobuf.Struct") if kind == "MAP" else (kind, type_name)

    def _entry(self, message: Any, field: str, node: Any) -> str:
        """The message of a map's entries, under the one name protobuf lets it have."""
        kind, type_name = self.inner(node)
        entry = message.nested_type.add(name="".join(w[:1].upper() + w[1:] for w in field.split("_")) + "Entry")
        entry.options.map_entry = True
        self._put(entry, "key", 1, self._field.LABEL_OPTIONAL, "STRING", "")
        self._put(entry, "value", 2, self._field.LABEL_OPTIONAL, kind, type_name)
        return f".{PACKAGE}.{message.name}.{entry.name}"


class Checker:
    """Checks expressions over typed variables: `nodes` by variable name, None for what may be anything."""

    def __init__(self, nodes: Mapping[str, Node | None], resolve: Resolve) -> None:
        messages = _Messages(resolve)
        kinds = {name: ("MESSAGE", _DYN) if node is None else messages.kind_once(node) for name, node in nodes.items()}
        inner = {name: messages.inner(node.get("items") or node.get("additionalProperties"))
                 for name, node in nodes.items() if node is not None and kinds[name][0] in ("LIST", "MAP")}
        self._environment = cel.typed_environment(messages.file, kinds, inner)

    def fault(self, expression: str) -> str:
        """What is wrong with an expression, "" when nothing is."""
        try:
            self._environment.compile(cel.spelled(expression))
        except RuntimeError as error:
            return _worded(_MESSAGE.sub("object", _IN_STRUCT.sub("", cel.plain(str(error)))))
        return ""

    def serialized(self, expression: str) -> bytes:
        """The checked form of an expression without a fault, as the library writes it."""
        return bytes(self._environment.compile(cel.spelled(expression)).serialize())

    def returns(self, expression: str) -> str:
        """The static type of an expression without a fault."""
        return str(self._environment.compile(cel.spelled(expression)).return_type().name())
