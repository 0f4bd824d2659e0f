"""The message classes of CRI, CSI and containerd's own API, made from `descriptors.binpb` when first asked for.

`cri.RunPodSandboxRequest(...)`, `cri.POD` (an enum value), `containerd.TaskExit.FromString(...)`. Owns the loading of
the descriptors; promises that a name exists or raises AttributeError at once; never talks to anyone. The service
tables here are what `client` builds its calls from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2  # noqa: F401


def _load() -> dict[str, Any]:
    """The files by package. Any and Timestamp must be known to the pool before: hence their imports."""
    pool = descriptor_pool.Default()
    described = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / "descriptors.binpb").read_bytes())
    files = {}
    for file in described.file:
        pool.AddSerializedFile(file.SerializeToString())
        files[file.package] = pool.FindFileByName(file.name)
    return files


class Package:
    """One .proto package as a namespace of message classes and enum values."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        found: Any = None
        if name in self._file.message_types_by_name:
            found = message_factory.GetMessageClass(self._file.message_types_by_name[name])
        else:
            for enum in self._file.enum_types_by_name.values():
                if name in enum.values_by_name:
                    found = enum.values_by_name[name].number
        if found is None:
            raise AttributeError(f"{self._file.package} has no {name}")
        setattr(self, name, found)
        return found

    def service(self, name: str) -> Any:
        """The descriptor of a service: its methods with their request and response types."""
        return self._file.services_by_name[name]


_FILES = _load()
cri = Package(_FILES["runtime.v1"])
containerd = Package(_FILES["pelamis.containerd"])
csi = Package(_FILES["csi.v1"])
registration = Package(_FILES["pluginregistration"])
