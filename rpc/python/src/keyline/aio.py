"""The client for asyncio: as keyline.Client, with awaitable methods and asynchronous streams.

async with keyline.aio.Client('127.0.0.1:50051') as client:
    async with client.stream('Once upon a time') as stream:
        async for text in stream.texts():
            print(text, end='', flush=True)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import grpc
import grpc.aio

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


class Stream(AsyncIterator[Event]):
    """The events of one answer: one PromptInfo, any number of Deltas, one Finish.

    Closing it, leaving its `async with` block or cancelling the task that reads it cancels what has
    not been read, and the server has the lane back at its next step.
    """

    def __init__(self, start: Callable[..., Any], call: calls.Call[Event], retry: Retry) -> None:
        self._start = start
        self._call = call
        self._retry = retry
        self._any = False
        self._closed = False
        self._responses = start(call.request, **retry.attempt())
        #: Once it has been read.
        self.finish: Finish | None = None

    async def __anext__(self) -> Event:
        while not self._closed:
            try:
                message = await self._responses.read()
            except grpc.RpcError as error:
                await self._refused(error_from_rpc(error))
                continue
            except asyncio.CancelledError:
                if self._closed:  # by aclose in another task
                    break
                raise
            if message is grpc.aio.EOF:  # type: ignore[attr-defined]
                self._closed = True
                break
            self._any = True
            event = self._call.read(message)
            if isinstance(event, Finish):
                self.finish = event
            return event
        raise StopAsyncIteration

    async def texts(self) -> AsyncIterator[str]:
        """The text alone, piece by piece."""
        async for event in self:
            if isinstance(event, Delta) and event.text:
                yield event.text

    async def aclose(self) -> None:
        self._closed = True
        self._responses.cancel()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _refused(self, failure: Error) -> None:
        """Sends the call again if it should be; raises otherwise."""
        pause = None if self._any else self._retry.pause(failure)
        if pause is None:
            self._closed = True
            raise failure from None
        await asyncio.sleep(pause)
        if not self._closed:
            self._responses = self._start(self._call.request, **self._retry.attempt())


class Client:
    """A connection to one server, of one event loop: make it where that runs.

    Methods and arguments are those of keyline.Client.
    """

    def __init__(self, address: str, **options: Unpack[ConnectionOptions]) -> None:
        connection = Connection(**options)
        self._max_attempts = connection.max_attempts
        self._channel = (
            grpc.aio.insecure_channel(address, connection.channel_options)
            if connection.credentials is None
            else grpc.aio.secure_channel(
                address, connection.credentials, connection.channel_options
            )
        )

    async def close(self) -> None:
        """Ends the connection; calls in progress are cancelled."""
        await self._channel.close(None)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def generate(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """A whole answer to `prompt`, or to `messages=` or `token_ids=`: see GenerateOptions."""
        return await self._call(calls.generate(prompt, options), timeout)

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

    async def score(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[ScoreOptions],
    ) -> Score:
        """The log-probability of every given token under a cache policy: see ScoreOptions."""
        return await self._call(calls.score(prompt, options), timeout)

    async def embed(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> Embedding:
        """Hidden states of the given tokens, pooled to one vector: see EmbedOptions."""
        return await self._call(calls.embed(prompt, options), timeout)

    async def tokenize(
        self,
        prompt: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[PromptOptions],
    ) -> list[int]:
        """The token ids of a text, or of `messages=` as the model would see them."""
        return await self._call(calls.tokenize(prompt, options), timeout)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        keep_special: bool | None = None,
        timeout: float | None = None,
    ) -> str:
        """The text of token ids, with special tokens written out if `keep_special`."""
        return await self._call(calls.detokenize(token_ids, keep_special), timeout)

    async def create_session(
        self,
        prefix: str | None = None,
        *,
        timeout: float | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """A conversation that stays on the server: `generate(..., session_id=session.id)`.

        `prefix`, or `messages=` of one system message, or `token_ids=`, is what all turns follow.
        """
        return await self._call(sessions.create(prefix, options), timeout)

    async def session(self, session_id: str, *, timeout: float | None = None) -> Session:
        return await self._call(sessions.get(session_id), timeout)

    async def sessions(self, *, timeout: float | None = None) -> list[Session]:
        return await self._call(sessions.every(), timeout)

    async def fork_session(self, session_id: str, *, timeout: float | None = None) -> Session:
        """Another session that stands where this one stands."""
        return await self._call(sessions.fork(session_id), timeout)

    async def delete_session(self, session_id: str, *, timeout: float | None = None) -> None:
        await self._call(sessions.delete(session_id), timeout)

    async def save_session(self, session_id: str, *, timeout: float | None = None) -> SavedSession:
        """Writes it to a file on the server, under the name that comes back; it goes on."""
        return await self._call(sessions.save(session_id), timeout)

    async def restore_session(self, name: str, *, timeout: float | None = None) -> Session:
        """A new session that stands where the saved one stood."""
        return await self._call(sessions.restore(name), timeout)

    async def saved_sessions(self, *, timeout: float | None = None) -> list[SavedSession]:
        return await self._call(sessions.every_saved(), timeout)

    async def delete_saved_session(self, name: str, *, timeout: float | None = None) -> None:
        await self._call(sessions.delete_saved(name), timeout)

    async def server_info(self, *, timeout: float | None = None) -> ServerInfo:
        return await self._call(calls.SERVER_INFO, timeout)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        return await self._call(calls.MODEL_INFO, timeout)

    async def placement(self, *, timeout: float | None = None) -> list[Stage]:
        """Which rank runs which layers, and what that takes."""
        return await self._call(calls.PLACEMENT, timeout)

    async def load(self, *, timeout: float | None = None) -> Load:
        return await self._call(calls.LOAD, timeout)

    async def cache_stats(self, *, timeout: float | None = None) -> list[LayerCacheStats]:
        """How full the caches are, and what they have dropped, layer by layer."""
        return await self._call(calls.CACHE_STATS, timeout)

    async def watch_cache(
        self,
        *,
        request_id: str | None = None,
        layers: Sequence[int] | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[CacheEvent, None]:
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
        await responses.initial_metadata()

        async def events() -> AsyncGenerator[CacheEvent, None]:
            try:
                async for message in responses:
                    yield call.read(message)
            except grpc.RpcError as error:
                raise error_from_rpc(error) from None
            finally:
                responses.cancel()

        return events()

    async def drain(self, *, timeout: float | None = None) -> Draining:
        """Ends the server in good order: running requests finish, new ones are Unavailable."""
        return await self._call(calls.DRAIN, timeout)

    async def wait_until_ready(self, timeout: float) -> None:
        """Returns once the server takes requests; DeadlineExceeded if it does not by then."""
        await self._send(calls.READY, UntilReady(timeout))

    async def _call(self, call: calls.Call[T], timeout: float | None) -> T:
        return await self._send(call, Retry(self._max_attempts, timeout))

    async def _send(self, call: calls.Call[T], retry: Retry | UntilReady) -> T:
        start = self._channel.unary_unary(
            call.method.path,
            request_serializer=call.method.request.SerializeToString,
            response_deserializer=call.method.response.FromString,
        )
        while True:
            try:
                return call.read(await start(call.request, **retry.attempt()))
            except grpc.RpcError as error:
                failure = error_from_rpc(error)
            except Error as error:
                failure = error
            pause = retry.pause(failure)
            if pause is None:
                raise failure
            await asyncio.sleep(pause)
