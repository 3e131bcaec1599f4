"""Packs the interface, rpc/keyline/v1/*.proto and what they lean on, into the package.

As one descriptor set and not as generated code: generated code runs with few versions of Protobuf,
a descriptor set with any. A source distribution carries the file already.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOS = (
    'keyline/v1/inference.proto',
    'keyline/v1/control.proto',
    'keyline/v1/sessions.proto',
    'grpc/health/v1/health.proto',
    'google/rpc/status.proto',
    'google/rpc/error_details.proto',
)


class PackProtocol(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        rpc = Path(self.root).parent
        packed = Path(self.root, 'src/keyline/protocol.binpb')
        if not (rpc / PROTOS[0]).exists() and packed.exists():
            return
        well_known = resources.files('grpc_tools') / '_proto'
        command = ['protoc', f'-I{rpc}', f'-I{well_known}', '--include_imports']
        if protoc.main([*command, f'--descriptor_set_out={packed}', *PROTOS]) != 0:
            raise RuntimeError(f'protoc failed on the .proto files of {rpc}')
