"""A server that says what a test wants it to say, call by call: refusals, then answers."""

import contextlib
import time
from concurrent import futures

import grpc

from keyline.protocol import message_type, method

SERVING, NOT_SERVING = 1, 2


class Refusal:
    """A status, with the details that keyline's servers send."""

    def __init__(self, code, message='', retry_delay=None, fields=()):
        self.code = code
        self.message = message
        status = message_type('google.rpc.Status')(code=code.value[0], message=message)
        if retry_delay is not None:
            info = message_type('google.rpc.RetryInfo')()
            info.retry_delay.FromNanoseconds(int(retry_delay * 1e9))
            status.details.add().Pack(info)
        if fields:
            bad = message_type('google.rpc.BadRequest')()
            for field, description in fields:
                bad.field_violations.add(field=field, description=description)
            status.details.add().Pack(bad)
        self.details = status.SerializeToString()

    def end(self, context):
        context.set_trailing_metadata((('grpc-status-details-bin', self.details),))
        context.abort(self.code, self.message)


class ScriptedServer(grpc.GenericRpcHandler):
    """Each call of Generate or GenerateStream takes the next line of the script: a list of messages
    and Refusals. Health answers `health`."""

    def __init__(self, *script, health=SERVING):
        self.script = list(script)
        self.times = []
        self.health = health

    def service(self, details):
        service, name = details.method[1:].split('/')
        called = method(service, name)
        wire = {
            'request_deserializer': called.request.FromString,
            'response_serializer': called.response.SerializeToString,
        }
        if name == 'Check':
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: called.response(status=self.health), **wire
            )
        if name == 'GenerateStream':
            return grpc.unary_stream_rpc_method_handler(self._play, **wire)
        return grpc.unary_unary_rpc_method_handler(lambda *call: next(self._play(*call)), **wire)

    def _play(self, request, context):
        self.times.append(time.monotonic())
        for line in self.script.pop(0):
            if isinstance(line, Refusal):
                line.end(context)
            yield line

    @contextlib.contextmanager
    def serving(self, address='127.0.0.1:0'):
        """Its address."""
        server = grpc.server(futures.ThreadPoolExecutor(4))
        server.add_generic_rpc_handlers((self,))
        port = server.add_insecure_port(address)
        server.start()
        try:
            yield f'127.0.0.1:{port}'
        finally:
            server.stop(None).wait()
