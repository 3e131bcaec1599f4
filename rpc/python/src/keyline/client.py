"""The client for ordinary code; aio.py is the same for asyncio."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import grpc

from keyline import calls, sessions
from keyline.answers import (
    Answer,
    CacheEvent,
    Delta,
    Draining,
    Embedding,
    Event,
    Finish,
    LayerCacheStats,
    Load,
    ModelInfo,
    Score,
    ServerInfo,
    Stage,
)
from keyline.connection import Connection, ConnectionOptions, Retry, UntilReady
from keyline.errors import Error, error_from_rpc
from keyline.requests import EmbedOptions, GenerateOptions, PromptOptions, ScoreOptions
from keyline.sessions import SavedSession, Session, SessionOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar('T')


class Stream(Iterator[Event]):
    """The events of one answer: one PromptInfo, any number of Deltas, one Finish.

    Closing it, leaving its `with` block or dropping it cancels what has not been read, and the
    server has the lane back at its next step. Events are for one thread; `close` for any.
    """

    def __init__(self, start: Callable[..., Any], call: calls.Call[Event], retry: Retry) -> None:
        self._start = start
        self._call = call
        self._retry = retry
        self._any = False
        self._closed = threading.Event()
        self._responses = start(call.request, **retry.attempt())
        #: Once it has been read.
        self.finish: Finish | None = None

    def __next__(self) -> Event:
        while not self._closed.is_set():
            try:
                event = self._call.read(next(self._responses))
            except StopIteration:
                self._closed.set()
            except grpc.RpcError as error:
                self._refused(error_from_rpc(error))
            else:
                self._any = True
                if isinstance(event, Finish):
                    self.finish = event
                return event
        raise StopIteration

    def texts(self) -> Iterator[str]:
        """The text alone, piece by piece."""
        return (event.text for event in self if isinstance(event, Delta) and event.text)

    def close(self) -> None:
        self._closed.set()
        self._responses.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _refused(self, failure: Error) -> None:
        """Sends the call again if it should be; raises otherwise, unless this was closed."""
        if self._closed.is_set():
            return
        pause = None if self._any else self._retry.pause(failure)
        if pause is None:
            self._closed.set()
            raise failure from None
        if not self._closed.wait(pause):
            self._responses = self._start(self._call.request, **self._retry.attempt())
            if self._closed.is_set():  # meanwhile, by another thread
                self._responses.cancel()


class Client:
    """A connection to one server; all methods may be called from any number of threads.

    Calls wait for their answer, at most `timeout` seconds (None: for ever) with all their attempts;
    failures are `keyline.Error`. A call that was refused before it had any answer is sent again, up
    to `max_attempts` times, after the delay that the server asks for.

    Does not wait for the server: see `wait_until_ready`.

    Args:
        address: "host:port".
        options: TLS, token, attempts: see ConnectionOptions.
    """

    def __init__(self, address: str, **options: Unpack[ConnectionOptions]) -> None:
        connection = Connection(**options)
        self._max_attempts = connection.max_attempts
        self._channel = (
            grpc.insecure_channel(address, connection.channel_options)
            if connection.credentials is None
            else grpc.secure_channel(address, connection.credentials, connection.channel_options)
        )

    def close(self) -> None:
        """Ends the connection; calls in progress are cancelled."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """A whole answer to `prompt`, or to `messages=` or `token_ids=`: see GenerateOptions."""
        return self._call(calls.generate(prompt, options), timeout)

    def stream(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """As generate, while the answer is made. Returns at once; failures come with the events."""
        call = calls.stream(prompt, options)
        start = self._channel.unary_stream(
            call.method.path,
            request_serializer=call.method.request.SerializeToString,
            response_deserializer=call.method.response.FromString,
        )
        return Stream(start, call, Retry(self._max_attempts, timeout))

    def score(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Score:
        """The log-probability of every given token under a cache policy: see ScoreOptions."""
        return self._call(calls.score(prompt, options), timeout)

    def embed(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embedding:
        """Hidden states of the given tokens, pooled to one vector: see EmbedOptions."""
        return self._call(calls.embed(prompt, options), timeout)

    def tokenize(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[PromptOptions],
    ) -> list[int]:
        """The token ids of a text, or of `messages=` as the model would see them."""
        return self._call(calls.tokenize(prompt, options), timeout)

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        keep_special: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """The text of token ids, with special tokens written out if `keep_special`."""
        return self._call(calls.detokenize(token_ids, keep_special), timeout)

    def create_session(
        self,
        prefix: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """A conversation that stays on the server: `generate(..., session_id=session.id)`.

        `prefix`, or `messages=` of one system message, or `token_ids=`, is what all turns follow.
        """
        return self._call(sessions.create(prefix, options), timeout)

    def session(self, session_id: str, *, timeout: float | None = None) -> Session:
        return self._call(sessions.get(session_id), timeout)

    def sessions(self, *, timeout: float | None = None) -> list[Session]:
        return self._call(sessions.every(), timeout)

    def fork_session(self, session_id: str, *, timeout: float | None = None) -> Session:
        """Another session that stands where this one stands."""
        return self._call(sessions.fork(session_id), timeout)

    def delete_session(self, session_id: str, *, timeout: float | None = None) -> None:
        self._call(sessions.delete(session_id), timeout)

    def save_session(self, session_id: str, *, timeout: float | None = None) -> SavedSession:
        """Writes it to a file on the server, under the name that comes back; it goes on."""
        return self._call(sessions.save(session_id), timeout)

    def restore_session(self, name: str, *, timeout: float | None = None) -> Session:
        """A new session that stands where the saved one stood."""
        return self._call(sessions.restore(name), timeout)

    def saved_sessions(self, *, timeout: float | None = None) -> list[SavedSession]:
        return self._call(sessions.every_saved(), timeout)

    def delete_saved_session(self, name: str, *, timeout: float | None = None) -> None:
        self._call(sessions.delete_saved(name), timeout)

    def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        return self._call(calls.SERVER_INFO, timeout)

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        return self._call(calls.MODEL_INFO, timeout)

    def placement(self, *, timeout: float | None = None) -> list[Stage]:
        """Which rank runs which layers, and what that takes."""
        return self._call(calls.PLACEMENT, timeout)

    def load(self, *, timeout: float | None = None) -> Load:
        return self._call(calls.LOAD, timeout)

    def cache_stats(self, *, timeout: float | None = None) -> list[LayerCacheStats]:
        """How full the caches are, and what they have dropped, layer by layer."""
        return self._call(calls.CACHE_STATS, timeout)

    def watch_cache(
        self,
        *,
        request_id: str | None = None,
        layers: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> Generator[CacheEvent, None, None]:
        """What the caches of running requests do, chunk by chunk; of one request or all.

        Returns once the server watches. While anybody watches, all requests run slower; who reads
        too slowly loses events (`CacheEvent.lost`). Closing the generator ends the watch.
        """
        call = calls.watch(request_id, layers)
        start = self._channel.unary_stream(
            call.method.path,
            request_serializer=call.method.request.SerializeToString,
            response_deserializer=call.method.response.FromString,
        )
        responses = start(call.request, timeout=timeout)
        try:
            responses.initial_metadata()
        except grpc.RpcError as error:
            raise error_from_rpc(error) from None

        def events() -> Generator[CacheEvent, None, None]:
            try:
                for message in responses:
                    yield call.read(message)
            except grpc.RpcError as error:
                raise error_from_rpc(error) from None
            finally:
                responses.cancel()

        return events()

    def drain(self, *, timeout: float | None = None) -> Draining:
        """Ends the server in good order: running requests finish, new ones are Unavailable."""
        return self._call(calls.DRAIN, timeout)

    def wait_until_ready(self, timeout: float) -> None:
        """Returns once the server takes requests; DeadlineExceeded if it does not by then."""
        self._send(calls.READY, UntilReady(timeout))

    def _call(self, call: calls.Call[T], timeout: float | None) -> T:
        return self._send(call, Retry(self._max_attempts, timeout))

    def _send(self, call: calls.Call[T], retry: Retry | UntilReady) -> T:
        start = self._channel.unary_unary(
            call.method.path,
            request_serializer=call.method.request.SerializeToString,
            response_deserializer=call.method.response.FromString,
        )
        while True:
            try:
                return call.read(start(call.request, **retry.attempt()))
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
            except Error as error:
                failure = error
            pause = retry.pause(failure)
            if pause is None:
                raise failure
            time.sleep(pause)
