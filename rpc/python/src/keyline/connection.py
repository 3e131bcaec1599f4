"""How a server is reached, and when a call that was refused is sent again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypedDict

import grpc

from keyline.errors import DeadlineExceeded, Error, ResourceExhausted, Unauthenticated, Unavailable

_MAX_MESSAGE_BYTES = 64 << 20
_FIRST_PAUSE = 0.1  # seconds, as all of these
_LONGEST_PAUSE = 2.0
_READY_PAUSE = 0.05


class ConnectionOptions(TypedDict, total=False):
    """Keyword arguments of the clients."""

    # PEM file of the authority that the server's certificate comes from. Default: no TLS.
    server_ca_file: str | None
    # What the server's certificate is made out to, if not the address's host.
    server_name: str | None
    # This client's own certificate and key, if the server asks for one.
    certificate_file: str | None
    key_file: str | None
    # Sent as "authorization: Bearer ..."; needs TLS.
    token: str | None
    # How often in all a call is sent that is refused before it had any answer. Default: 4.
    max_attempts: int


class Connection:
    """What the two kinds of channels are made from."""

    def __init__(
        self,
        server_ca_file: str | None = None,
        server_name: str | None = None,
        certificate_file: str | None = None,
        key_file: str | None = None,
        token: str | None = None,
        max_attempts: int = 4,
    ) -> None:
        if max_attempts < 1:
            raise ValueError(f'max_attempts: got {max_attempts}, must be at least 1')
        self.max_attempts = max_attempts
        self.credentials = _credentials(server_ca_file, certificate_file, key_file, token)
        self.channel_options: list[tuple[str, Any]] = [
            ('grpc.enable_http_proxy', 0),  # a server is next door, whatever http_proxy says
            ('grpc.enable_retries', 0),  # Retry does it
            ('grpc.keepalive_time_ms', 20000),
            ('grpc.keepalive_timeout_ms', 10000),
            ('grpc.http2.max_pings_without_data', 0),
            ('grpc.max_reconnect_backoff_ms', 2000),
            ('grpc.use_local_subchannel_pool', 1),  # a client, a connection
            ('grpc.max_receive_message_length', _MAX_MESSAGE_BYTES),
        ]
        if server_name:
            self.channel_options.append(('grpc.ssl_target_name_override', server_name))


def _credentials(
    server_ca_file: str | None,
    certificate_file: str | None,
    key_file: str | None,
    token: str | None,
) -> grpc.ChannelCredentials | None:
    """None: no TLS."""
    if (certificate_file is None) != (key_file is None):
        raise ValueError('certificate_file and key_file go together')
    if server_ca_file is None:
        if token or certificate_file:
            raise ValueError('a token or a client certificate needs TLS: give server_ca_file')
        return None
    credentials = grpc.ssl_channel_credentials(
        root_certificates=Path(server_ca_file).read_bytes(),
        private_key=Path(key_file).read_bytes() if key_file else None,
        certificate_chain=Path(certificate_file).read_bytes() if certificate_file else None,
    )
    if not token:
        return credentials
    return grpc.composite_channel_credentials(
        credentials, grpc.access_token_call_credentials(token)
    )


class Retry:
    """Decides whether and when a refused call is sent again. One object a call."""

    def __init__(self, max_attempts: int, timeout: float | None) -> None:
        self._left = max_attempts
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pause = _FIRST_PAUSE
        self._attempted = False

    def attempt(self) -> dict[str, Any]:
        """gRPC's arguments for the next attempt.

        All but the first wait for a connection, if there is a deadline: an attempt that fails at
        once would spend itself on a server that is just coming up.
        """
        wait = self._attempted and self._deadline is not None
        self._attempted = True
        self._left -= 1
        return {'timeout': _remaining(self._deadline), 'wait_for_ready': wait}

    def pause(self, failure: Error) -> float | None:
        """Seconds until the call should be sent again; None if it should not."""
        wanted = failure.retry_delay
        full = isinstance(failure, ResourceExhausted) and wanted is not None
        if self._left <= 0 or not (full or isinstance(failure, Unavailable)):
            return None
        pause = self._pause if wanted is None else wanted
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        if self._deadline is not None and time.monotonic() + pause >= self._deadline:
            return None
        return pause


class UntilReady:
    """As Retry, for the question whether a server takes requests: asked until it does."""

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._last = 'no answer'

    def attempt(self) -> dict[str, Any]:
        return {'timeout': _remaining(self._deadline), 'wait_for_ready': True}

    def pause(self, failure: Error) -> float | None:
        if isinstance(failure, Unauthenticated):
            return None
        if not isinstance(failure, DeadlineExceeded):
            self._last = failure.details or self._last
        if time.monotonic() + _READY_PAUSE >= self._deadline:
            raise DeadlineExceeded(f'the server is not ready: {self._last}')
        return _READY_PAUSE


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
