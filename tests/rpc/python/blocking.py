"""keyline.aio.Client behind the methods of keyline.Client, so that each test is one of both."""

import asyncio
import threading

import keyline


class BlockingStream:
    def __init__(self, client, stream):
        self._client = client
        self._stream = stream

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return self._client.run(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def texts(self):
        pieces = self._stream.texts()
        while True:
            try:
                yield self._client.run(pieces.__anext__())
            except StopAsyncIteration:
                return

    @property
    def finish(self):
        return self._stream.finish

    def close(self):
        self._client.run(self._stream.aclose())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._client.run(self._stream.__aexit__(None, None, None))


class BlockingClient:
    def __init__(self, address, **options):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = self._make(keyline.aio.Client, address, **options)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def _make(self, function, *arguments, **options):
        """Calls an ordinary function where the loop runs."""

        async def make():
            return function(*arguments, **options)

        return self.run(make())

    def stream(self, *arguments, **options):
        return BlockingStream(self, self._make(self._client.stream, *arguments, **options))

    def watch_cache(self, **options):
        events = self.run(self._client.watch_cache(**options))

        def read():
            try:
                while True:
                    yield self.run(events.__anext__())
            except StopAsyncIteration:
                return
            finally:
                self.run(events.aclose())

        return read()

    def close(self):
        self.run(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        method = getattr(self._client, name)
        return lambda *arguments, **options: self.run(method(*arguments, **options))
