"""What a server refuses or fails with: one exception a gRPC status code, all of them `Error`."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc

from keyline.protocol import message_type

_Status = message_type('google.rpc.Status')
_BadRequest = message_type('google.rpc.BadRequest')
_RetryInfo = message_type('google.rpc.RetryInfo')


class FieldViolation(NamedTuple):
    """A field that the server did not accept."""

    field: str  # as in keyline/v1/*.proto: "sampling.top_p"
    description: str


class Error(Exception):
    """A call that failed. `str()` is the server's message."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        details: str = '',
        *,
        field_violations: tuple[FieldViolation, ...] = (),
        retry_delay: float | None = None,
    ) -> None:
        super().__init__(details)
        #: The server's message.
        self.details = details
        #: The fields that were not accepted, if that is the reason.
        self.field_violations = field_violations
        #: Seconds after which the server wants to be asked again, if it said so.
        self.retry_delay = retry_delay


class Cancelled(Error):
    """The call was cancelled."""

    code = grpc.StatusCode.CANCELLED


class InvalidArgument(Error):
    """A field is out of bounds or does not fit the model: see `field_violations`."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceeded(Error):
    """The call's timeout is over; its cache lane is free again."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class NotFound(Error):
    """The model asked for is not the one served."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(Error):
    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(Error):
    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhausted(Error):
    """The queue is full (then `retry_delay` is set), a message was too large, or a stream was read
    too slowly."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(Error):
    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(Error):
    code = grpc.StatusCode.ABORTED


class OutOfRange(Error):
    code = grpc.StatusCode.OUT_OF_RANGE


class Unimplemented(Error):
    """The server is older than this package."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Internal(Error):
    """The server's fault."""

    code = grpc.StatusCode.INTERNAL


class Unavailable(Error):
    """No server there, or it is draining, or it has lost its pipeline."""

    code = grpc.StatusCode.UNAVAILABLE


class DataLoss(Error):
    code = grpc.StatusCode.DATA_LOSS


class Unauthenticated(Error):
    """No token, or a wrong one."""

    code = grpc.StatusCode.UNAUTHENTICATED


_ALL: tuple[type[Error], ...] = (Error, *Error.__subclasses__())
_KINDS = {kind.code: kind for kind in _ALL}


def error_from_rpc(error: Any) -> Error:
    """The exception for a grpc.RpcError, which is also a call (sync) or an AioRpcError."""
    status = _Status()
    for key, value in error.trailing_metadata() or ():
        if key == 'grpc-status-details-bin':
            status.MergeFromString(value)
    violations: list[FieldViolation] = []
    retry_delay = None
    for detail in status.details:
        if detail.Is(_BadRequest.DESCRIPTOR):
            violations += (
                FieldViolation(violation.field, violation.description)
                for violation in _BadRequest.FromString(detail.value).field_violations
            )
        elif detail.Is(_RetryInfo.DESCRIPTOR):
            delay = _RetryInfo.FromString(detail.value).retry_delay
            retry_delay = delay.seconds + delay.nanos * 1e-9
    code = error.code()
    if code == grpc.StatusCode.CANCELLED and (error.details() or code.name) == code.name:
        # Whoever cancels says so, here or in the server. This is the connection of a server that
        # has ended: HTTP/2 resets the streams that came in too late.
        return Unavailable('the server ended')
    return _KINDS.get(code, Error)(
        error.details() or '', field_violations=tuple(violations), retry_delay=retry_delay
    )
