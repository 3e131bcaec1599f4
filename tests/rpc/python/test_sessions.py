"""Sessions and prefixes against `keyline serve` with a tiny model without a tokenizer."""

from dataclasses import fields

import pytest
from serving import LLAMA, serve

import keyline
from keyline import calls, sessions
from keyline.protocol import message_type

FIRST = [5, 6, 7, 8]
SECOND = [20 + i for i in range(30)]
THIRD = [9, 4]
CACHES = [keyline.H2O(64, grace=16, sinks=2, chunk_size=16), keyline.LastRecent(64, chunk_size=16)]


def names(message):
    return {field.name for field in message_type(f'keyline.v1.{message}').DESCRIPTOR.fields}


def ask(client, token_ids, **options):
    return client.generate(
        **{'token_ids': token_ids, 'max_new_tokens': 8, 'ignore_eos': True, **options}
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('sessions')


FLAGS = ['--kv-cache-length', '128', '--kv-chunk', '16', '--kv-enabled', 'last_recent,h2o']


@pytest.fixture(scope='module')
def keeper(binary, folder):
    """Address of a server with one lane, so that sessions have to leave it, on two ranks."""
    flags = [*FLAGS, '--lanes', '1', '--ranks', '2', '--max-sessions', '6']
    with serve(binary, LLAMA, *flags, '--session-dir', str(folder)) as (_, where):
        yield where


@pytest.fixture
def client(connect, keeper):
    client = connect(keeper)
    yield client
    for session in client.sessions():
        client.delete_session(session.id)


def test_turns_compute_only_what_is_new(client):
    session = client.create_session()
    assert (session.tokens, session.turns, session.busy) == (0, 0, False)
    first = ask(client, FIRST, session_id=session.id)
    assert (first.usage.prompt_tokens, first.usage.cached_prompt_tokens) == (4, 0)
    second = ask(client, SECOND, session_id=session.id)
    assert (second.usage.prompt_tokens, second.usage.cached_prompt_tokens) == (42, 11)
    # Dense: as if all had been given at once.
    whole = ask(client, FIRST + first.token_ids + SECOND)
    assert second.token_ids == whole.token_ids
    on = client.generate(session_id=session.id, max_new_tokens=3, ignore_eos=True)
    longer = ask(client, FIRST + first.token_ids + SECOND, max_new_tokens=11)
    assert on.token_ids == longer.token_ids[8:]
    after = client.session(session.id)
    assert (after.tokens, after.turns) == (53, 3)
    assert after.created < after.used


def test_a_stream_continues_a_session(client):
    session = client.create_session(token_ids=FIRST)
    assert session.tokens == 4
    with client.stream(
        token_ids=THIRD, session_id=session.id, max_new_tokens=5, ignore_eos=True
    ) as stream:
        first, *_, last = stream
    assert first.prompt_tokens == last.usage.prompt_tokens == 6
    assert client.session(session.id).tokens == 11


@pytest.mark.parametrize('cache', CACHES, ids=lambda cache: cache.field)
def test_forks_and_restored_ones_say_the_same(client, cache):
    session = client.create_session(cache=cache)
    assert session.cache.cache_length == 64
    for turn in (FIRST, SECOND, SECOND):
        ask(client, turn, session_id=session.id)
    fork = client.fork_session(session.id)
    saved = client.save_session(session.id)
    assert saved.bytes > 1000
    assert saved in client.saved_sessions()
    restored = client.restore_session(saved.name)
    assert len({session.id, fork.id, restored.id}) == 3
    want = ask(client, THIRD, session_id=session.id).token_ids
    assert ask(client, FIRST, session_id=fork.id).token_ids
    assert ask(client, THIRD, session_id=restored.id).token_ids == want
    client.delete_saved_session(saved.name)
    with pytest.raises(keyline.NotFound):
        client.restore_session(saved.name)


def test_saved_here_goes_on_elsewhere(client, connect, binary, folder):
    session = client.create_session(cache=CACHES[0])
    ask(client, SECOND + SECOND, session_id=session.id)
    saved = client.save_session(session.id)
    want = ask(client, THIRD, session_id=session.id).token_ids
    with serve(binary, LLAMA, *FLAGS, '--session-dir', str(folder)) as (_, where):
        other = connect(where)
        restored = other.restore_session(saved.name)
        assert (restored.turns, restored.tokens) == (1, 68)
        assert ask(other, THIRD, session_id=restored.id).token_ids == want
    client.delete_saved_session(saved.name)


def test_a_damaged_file_is_data_loss(client, folder):
    session = client.create_session()
    ask(client, FIRST, session_id=session.id)
    saved = client.save_session(session.id)
    (path,) = folder.glob(saved.name + '*')
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(keyline.DataLoss, match='checksum'):
        client.restore_session(saved.name)
    client.delete_saved_session(saved.name)


def test_the_least_recently_used_one_expires(client):
    made = [client.create_session().id for _ in range(6)]
    ask(client, FIRST, session_id=made[0])
    newest = client.create_session().id
    assert [session.id for session in client.sessions()] == [made[0], *made[2:], newest]
    with pytest.raises(keyline.NotFound, match='expired'):
        ask(client, FIRST, session_id=made[1])


@pytest.mark.parametrize(
    ('options', 'kind', 'what'),
    [
        ({'cache': CACHES[0]}, keyline.InvalidArgument, '^cache: not with session_id'),
        ({'prefix': 2}, keyline.InvalidArgument, '^prefix: not with session_id'),
        ({'session_id': 'x'}, keyline.NotFound, 'unknown'),
        ({'max_new_tokens': 128}, keyline.InvalidArgument, 'max_new_tokens'),
    ],
)
def test_what_a_turn_cannot_have_is_refused(client, options, kind, what):
    session = client.create_session()
    with pytest.raises(kind, match=what):
        ask(client, FIRST, **{'session_id': session.id, **options})
    assert not client.session(session.id).busy
    with pytest.raises(keyline.InvalidArgument):
        client.restore_session('../x')


@pytest.mark.parametrize('cache', [keyline.Dense(), *CACHES], ids=lambda cache: cache.field)
def test_a_prefix_is_computed_once(client, cache):
    own = len(cache.field) + 20 * isinstance(client, keyline.Client)  # nobody else's prefix
    prefix = [(7 * i + own) % 300 + 3 for i in range(80)]
    answers = [
        ask(client, prefix + THIRD, prefix=80, cache=cache, max_new_tokens=6) for _ in range(2)
    ]
    assert [answer.usage.cached_prompt_tokens for answer in answers] == [0, 80]
    assert answers[0].token_ids == answers[1].token_ids
    with pytest.raises(keyline.InvalidArgument, match=r'^prefix\.tokens'):
        ask(client, FIRST, prefix=4)


def test_messages_and_methods_have_their_place():
    assert {field.name for field in fields(keyline.Session)} == names('Session')
    assert {field.name for field in fields(keyline.SavedSession)} == names('SavedSession')
    with pytest.raises(TypeError, match='beams: there is no such argument'):
        sessions.create(None, {'beams': 1})
    made = sessions.create(None, {'messages': [{'role': 'system', 'content': 'x'}]}).request
    assert made.prefix.chat.messages[0].content == 'x'
    assert not sessions.create(None, {}).request.HasField('prefix')
    marks = [('x', 'text'), (3, 'tokens'), (True, 'system_message'), (False, None)]
    for prefix, mark in marks:
        request = calls.generate('y', {'prefix': prefix}).request
        assert request.prefix.WhichOneof('mark') == mark
    used = {
        call.method.path.rsplit('/', 1)[1]
        for call in (
            sessions.create(None, {}),
            sessions.get('a'),
            sessions.every(),
            sessions.fork('a'),
            sessions.delete('a'),
            sessions.save('a'),
            sessions.restore('a'),
        )
    }
    file = message_type('keyline.v1.Session').DESCRIPTOR.file
    assert used == {method.name for method in file.services_by_name['Sessions'].methods}
