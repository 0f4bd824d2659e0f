"""The message classes of CRI, containerd's own API and what plugins speak, made from `descriptors.binpb` when first
asked for.

`cri.RunPodSandboxRequest(...)`, `cri.POD` (an enum value), `containerd.TaskExit.FromString(...)`. Owns the loading of
the descriptors; promises that a name exists or raises AttributeError at once; never talks to anyone. The service
tables here are what `client` builds its calls from.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2  # noqa: F401


class Package:
    """One .proto package as a namespace of message classes and enum values; a package nobody asks costs its bytes."""

    def __init__(self, described: Any) -> None:
        self._name, self._bytes = described.name, described.SerializeToString()

    @cached_property
    def _file(self) -> Any:
        pool = descriptor_pool.Default()  # Any and Timestamp must be known to it before: hence their imports
        pool.AddSerializedFile(self._bytes)
        return pool.FindFileByName(self._name)

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


_FILES = {file.package: file for file in descriptor_pb2.FileDescriptorSet.FromString(
    (Path(__file__).parent / "descriptors.binpb").read_bytes()).file}
cri = Package(_FILES["runtime.v1"])
containerd = Package(_FILES["pelamis.containerd"])
csi = Package(_FILES["csi.v1"])
registration = Package(_FILES["pluginregistration"])
deviceplugin = Package(_FILES["v1beta1"])
podresources = Package(_FILES["v1"])
dra = Package(_FILES["k8s.io.kubelet.pkg.apis.dra.v1"])
drahealth = Package(_FILES["v1alpha1"])
del _FILES
