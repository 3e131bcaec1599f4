"""The messages and methods of rpc/keyline/v1/*.proto, made when the package is imported.

They live in a descriptor pool of their own, so that they never meet another package's copy of
google.rpc or grpc.health. Their classes are made at run time, hence `Any` for a message here; what
a user sees has types (requests.py, answers.py, cache.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_pool = descriptor_pool.DescriptorPool()
for _file in descriptor_pb2.FileDescriptorSet.FromString(
    resources.files('keyline').joinpath('protocol.binpb').read_bytes()
).file:
    _pool.AddSerializedFile(_file.SerializeToString())


class Method(NamedTuple):
    """A method of a service, with the classes of its messages."""

    path: str
    request: Any
    response: Any


def message_type(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def method(service: str, name: str) -> Method:
    found = _pool.FindServiceByName(service).methods_by_name[name]
    return Method(
        f'/{service}/{name}',
        message_factory.GetMessageClass(found.input_type),
        message_factory.GetMessageClass(found.output_type),
    )


def fill(message: Any, **fields: Any) -> None:
    """Sets those fields of `message` that are not None; errors name the field.

    Raises:
        TypeError, ValueError: the field cannot hold the value.
    """
    for name, value in fields.items():
        if value is None:
            continue
        try:
            if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
                getattr(message, name).extend(value)
            else:
                setattr(message, name, value)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
        except (TypeError, AttributeError) as error:  # AttributeError: there is no such field
            raise TypeError(f'{name}: {error}') from error


_Duration = message_type('google.protobuf.Duration')


def value_of(message: Any, name: str) -> Any:
    """A field as plain Python: durations in seconds, repeated fields as lists, unset as None."""
    if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    value = getattr(message, name)
    if isinstance(value, _Duration):
        return value.seconds + value.nanos * 1e-9
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return list(value)
    return value
