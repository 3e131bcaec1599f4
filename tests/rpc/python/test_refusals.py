"""Errors and their details; when a call is sent again and when not. No model is needed."""

import pickle
import socket
import threading
import time

import grpc
import pytest
from scripted_server import NOT_SERVING, Refusal, ScriptedServer

import keyline
from keyline.protocol import message_type

ANSWER = message_type('keyline.v1.GenerateResponse')(output={'token_ids': [7]})
EVENT = message_type('keyline.v1.GenerateEvent')(delta={'token_ids': [7]})
UNAVAILABLE = Refusal(grpc.StatusCode.UNAVAILABLE, 'draining')
FULL = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, 'the queue is full', retry_delay=0.05)
TOO_LARGE = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, 'too large')


@pytest.mark.parametrize('code', [code for code in grpc.StatusCode if code.value[0] != 0])
def test_each_status_has_its_exception(connect, code):
    with ScriptedServer([Refusal(code, 'because')]).serving() as address:
        with pytest.raises(keyline.Error, match=r'^because$') as caught:
            connect(address, max_attempts=1).generate('x')
        assert caught.value.code == code
        assert type(caught.value).__name__.upper() == code.name.replace('_', '') or (
            code == grpc.StatusCode.UNKNOWN and type(caught.value) is keyline.Error
        )


@pytest.mark.parametrize('message', ['', 'CANCELLED'])
def test_a_reset_that_nobody_asked_for_is_a_server_gone(connect, message):
    server = ScriptedServer([Refusal(grpc.StatusCode.CANCELLED, message)], [ANSWER])
    with server.serving() as address:
        with pytest.raises(keyline.Unavailable, match='the server ended'):
            connect(address, max_attempts=1).generate('x')
        assert connect(address).generate('x').token_ids == [7]


def test_fields_are_named(connect):
    bad = Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, 'top_p: got 2', fields=[('sampling.top_p', 'got 2')]
    )
    with ScriptedServer([bad]).serving() as address:
        with pytest.raises(keyline.InvalidArgument) as caught:
            connect(address).generate('x')
        assert caught.value.field_violations == (keyline.FieldViolation('sampling.top_p', 'got 2'),)
        assert caught.value.retry_delay is None
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (type(copy), str(copy)) == (keyline.InvalidArgument, 'top_p: got 2')
        assert copy.field_violations == caught.value.field_violations


def test_refused_calls_are_sent_again(connect):
    server = ScriptedServer([UNAVAILABLE], [FULL], [ANSWER])
    with server.serving() as address:
        assert connect(address).generate('x').token_ids == [7]
        first, second, third = server.times
        assert second - first >= 0.1  # our own pause
        assert third - second >= 0.05  # the server's


def test_attempts_are_counted(connect):
    server = ScriptedServer(*[[FULL]] * 5)
    with server.serving() as address:
        with pytest.raises(keyline.ResourceExhausted) as caught:
            connect(address, max_attempts=3).generate('x')
        assert caught.value.retry_delay == pytest.approx(0.05)
        assert len(server.times) == 3


def test_what_would_be_refused_again_is_sent_once(connect):
    server = ScriptedServer([TOO_LARGE])
    with server.serving() as address:
        with pytest.raises(keyline.ResourceExhausted, match='too large') as caught:
            connect(address).generate('x')
        assert caught.value.retry_delay is None
        assert len(server.times) == 1


def test_a_pause_beyond_the_deadline_is_not_begun(connect):
    late = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, 'full', retry_delay=60)
    with ScriptedServer([late]).serving() as address:
        begun = time.monotonic()
        with pytest.raises(keyline.ResourceExhausted):
            connect(address).generate('x', timeout=20)
        assert time.monotonic() - begun < 20


def test_a_stream_is_sent_again_while_nothing_has_come(connect):
    server = ScriptedServer([UNAVAILABLE], [EVENT, UNAVAILABLE], [EVENT])
    with server.serving() as address:
        stream = connect(address).stream('x')
        assert next(stream).token_ids == [7]
        with pytest.raises(keyline.Unavailable, match='draining'):
            next(stream)
        assert list(stream) == []
        assert len(server.times) == 2


def test_a_stream_that_is_closed_ends(connect):
    with ScriptedServer([FULL], [EVENT]).serving() as address:
        stream = connect(address).stream('x')
        stream.close()
        assert list(stream) == []


def test_a_stream_is_closed_while_it_is_read(connect):
    over = threading.Event()

    def stalled():
        yield EVENT
        over.wait(60)

    with ScriptedServer(stalled()).serving() as address:
        stream = connect(address).stream('x')
        assert next(stream).token_ids == [7]
        threading.Timer(0.2, stream.close).start()
        assert list(stream) == []
        over.set()


def test_a_call_waits_for_a_server_that_comes_up(connect):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    answers = []
    client = connect(address)
    call = threading.Thread(target=lambda: answers.append(client.generate('x', timeout=60)))
    call.start()
    time.sleep(0.5)
    with ScriptedServer([ANSWER]).serving(address):
        client.wait_until_ready(60)
        call.join()
    assert answers[0].token_ids == [7]


def test_readiness_is_asked_until_the_deadline(connect):
    server = ScriptedServer(health=NOT_SERVING)
    with server.serving() as address:
        client = connect(address)
        with pytest.raises(keyline.DeadlineExceeded, match='not ready: the server takes no req'):
            client.wait_until_ready(0.3)
        threading.Timer(0.2, lambda: setattr(server, 'health', 1)).start()
        client.wait_until_ready(60)


def test_a_server_that_is_not_there_is_unavailable(connect):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(('127.0.0.1', 0))
        client = connect(f'127.0.0.1:{taken.getsockname()[1]}', max_attempts=1)
        with pytest.raises(keyline.Unavailable):
            client.generate('x')
        with pytest.raises(keyline.DeadlineExceeded, match='the server is not ready: '):
            client.wait_until_ready(0.2)


def test_no_proxy_is_asked(connect, monkeypatch):
    for name in ('http_proxy', 'https_proxy', 'grpc_proxy'):
        monkeypatch.setenv(name, 'http://127.0.0.1:1')
    monkeypatch.delenv('no_proxy', raising=False)
    with ScriptedServer([ANSWER]).serving() as address:
        assert connect(address, max_attempts=1).generate('x').token_ids == [7]


@pytest.mark.parametrize(
    ('options', 'what'),
    [
        ({'max_attempts': 0}, 'max_attempts: got 0'),
        ({'token': 'secret'}, 'needs TLS'),
        ({'certificate_file': 'a.pem', 'key_file': 'a.key'}, 'needs TLS'),
        ({'server_ca_file': 'ca.pem', 'key_file': 'a.key'}, 'go together'),
    ],
)
def test_connections_that_cannot_be(options, what):
    with pytest.raises(ValueError, match=what):
        keyline.Client('127.0.0.1:1', **options)
