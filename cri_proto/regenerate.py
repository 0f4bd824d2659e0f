"""Compiles the .proto files beside it into `descriptors.binpb`: run `python -m cri_proto.regenerate` after a change.

Owns the only use of protoc. The result is a serialized FileDescriptorSet rather than generated Python, because
generated code is tied to the protobuf release that made it, and a descriptor set loads in any. Needs grpcio-tools (the
`regenerate` extra); never imported by the product.
"""

from __future__ import annotations

import sys
from pathlib import Path

from google.protobuf import descriptor_pb2

HERE = Path(__file__).parent
SOURCES = ("cri.proto", "containerd.proto", "csi.proto", "registration.proto", "deviceplugin.proto",
           "podresources.proto", "dra.proto", "drahealth.proto")


def compile_protos(target: Path) -> None:
    """Write the descriptor set of SOURCES, with no source comments in it, to `target`."""
    from grpc_tools import protoc

    arguments = ["protoc", f"-I{HERE}", f"-I{Path(protoc.__file__).parent / '_proto'}",
                 f"--descriptor_set_out={target}", *SOURCES]
    if protoc.main(arguments):
        raise SystemExit("protoc failed; its message is above")
    found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    for file in found.file:
        file.name = f"cri_proto/{file.name}"
    target.write_bytes(found.SerializeToString(deterministic=True))


if __name__ == "__main__":
    compile_protos(HERE / "descriptors.binpb")
    print(f"wrote {HERE / 'descriptors.binpb'}", file=sys.stderr)
