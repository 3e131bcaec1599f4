"""Conversations that stay on the server between requests, and the calls about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keyline.cache import CachePolicy, read_policy, write_policy
from keyline.calls import Call, _options, _read, _take_prompt
from keyline.protocol import fill, method
from keyline.requests import PromptOptions

if TYPE_CHECKING:
    from typing import Callable, TypeVar

    T = TypeVar('T')

_SESSIONS = 'keyline.v1.Sessions'


class SessionOptions(PromptOptions, total=False):
    """What all turns of a session follow, if not the text that is given first; and its cache."""

    # Taken as they are: no BOS is added.
    token_ids: Sequence[int] | None
    # For the session's whole life. Default: the server's policy.
    cache: CachePolicy | None


@dataclass(frozen=True)
class Session:
    """A conversation whose KV cache the server keeps. Times are seconds since 1970."""

    id: str
    cache: CachePolicy | None
    tokens: int  #: of the conversation so far, prefix and answers included
    turns: int  #: requests that have continued it
    busy: bool  #: a request is at it
    on_lane: bool  #: its state is on the device; else in host memory, or there is none yet
    memory_bytes: int  #: that its state takes in host memory
    created: float
    used: float


@dataclass(frozen=True)
class SavedSession:
    """A session in a file of the server's."""

    name: str
    bytes: int
    saved: float  #: seconds since 1970


def _seconds(timestamp: Any) -> float:
    return float(timestamp.seconds) + float(timestamp.nanos) * 1e-9


def _read_session(message: Any) -> Session:
    return _read(
        Session,
        message,
        cache=read_policy(message.cache),
        created=_seconds(message.created),
        used=_seconds(message.used),
    )


def _read_saved(message: Any) -> SavedSession:
    return _read(SavedSession, message, saved=_seconds(message.saved))


def _call(name: str, read: Callable[[Any], T], **fields: Any) -> Call[T]:
    found = method(_SESSIONS, name)
    request = found.request()
    fill(request, **fields)
    return Call(found, request, read)


def create(text: str | None, given: SessionOptions) -> Call[Session]:
    call = _call('CreateSession', lambda message: _read_session(message.session))
    options = _options(given, SessionOptions)
    write_policy(options.pop('cache', None), call.request.cache)
    if text is not None or any(value is not None for value in options.values()):
        _take_prompt(text, options, call.request.prefix)
    return call


def get(session_id: str) -> Call[Session]:
    return _call(
        'GetSession', lambda message: _read_session(message.session), session_id=session_id
    )


def every() -> Call[list[Session]]:
    return _call(
        'ListSessions', lambda message: [_read_session(session) for session in message.sessions]
    )


def every_saved() -> Call[list[SavedSession]]:
    return _call('ListSessions', lambda message: [_read_saved(saved) for saved in message.saved])


def fork(session_id: str) -> Call[Session]:
    return _call(
        'ForkSession', lambda message: _read_session(message.session), session_id=session_id
    )


def delete(session_id: str) -> Call[None]:
    return _call('DeleteSession', lambda message: None, session_id=session_id)


def delete_saved(name: str) -> Call[None]:
    return _call('DeleteSession', lambda message: None, saved_name=name)


def save(session_id: str) -> Call[SavedSession]:
    return _call('SaveSession', lambda message: _read_saved(message.saved), session_id=session_id)


def restore(name: str) -> Call[Session]:
    return _call('RestoreSession', lambda message: _read_session(message.session), saved_name=name)
