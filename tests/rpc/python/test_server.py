"""Against `keyline serve` with a tiny model of random weights, which has no tokenizer."""

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import LLAMA, serve

import keyline

PROMPT = [5, 6, 7, 8]
LONG_PROMPT = [3 + i * 7 % 300 for i in range(200)]
# Runs for long, if nobody stops it: 4096 positions.
ENDLESS = {'token_ids': PROMPT, 'max_new_tokens': 4000, 'ignore_eos': True}
SLIDING = keyline.LastRecent(64, sinks=4)


def wait_idle(client):
    """The server's load, once nothing runs or waits."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        load = client.load()
        if load.running + load.waiting == 0:
            return load
        time.sleep(0.01)
    raise AssertionError(f'still busy: {load}')


def generate(client, **options):
    return client.generate(
        **{'token_ids': PROMPT, 'max_new_tokens': 12, 'ignore_eos': True, **options}
    )


def test_facts(client):
    server, model, stages = client.server_info(), client.model_info(), client.placement()
    assert server.version
    assert server.uptime > 0
    assert not server.draining
    assert (model.family, model.layers, model.kv_heads, model.vocab_size) == ('llama', 3, 2, 320)
    assert not model.has_tokenizer
    assert (model.bos_token_id, model.eos_token_ids) == (1, [2])
    assert model.lanes == 2
    assert {'last_recent', 'h2o'} <= set(model.enabled_policies)
    assert model.default_cache.cache_length == 128
    assert sum(stage.layers for stage in stages) == 3
    assert stages[-1].has_head
    assert sum(stage.kv_bytes for stage in stages) >= model.lanes * model.lane_bytes
    assert client.load().lanes == 2
    client.wait_until_ready(30)


def test_an_answer(client):
    answer = generate(client, logprobs=True, top_logprobs=2)
    assert len(answer.token_ids) == len(answer.logprobs) == len(answer.top_logprobs) == 12
    assert answer.usage == keyline.Usage(prompt_tokens=4, new_tokens=12)
    assert answer.finish_reason == 'length'
    assert 0 <= answer.timings.queued <= answer.timings.first_token <= answer.timings.total
    assert (answer.text, answer.stop, answer.cache) == ('', '', None)
    for token, logprob, (first, second) in zip(
        answer.token_ids, answer.logprobs, answer.top_logprobs
    ):
        assert first == (token, logprob)  # greedy
        assert 0 > first.logprob >= second.logprob


def test_a_stream_is_the_answer_in_order(client):
    answer = generate(client, logprobs=True)
    with client.stream(
        token_ids=PROMPT, max_new_tokens=12, ignore_eos=True, logprobs=True
    ) as stream:
        first, *deltas, last = stream
    assert first.prompt_tokens == 4
    tokens, logprobs = [], []
    for delta in deltas:
        assert isinstance(delta, keyline.Delta)
        assert delta.first_index == len(tokens)
        tokens += delta.token_ids
        logprobs += delta.logprobs
    assert (tokens, logprobs) == (answer.token_ids, answer.logprobs)
    assert last is stream.finish
    assert (last.reason, last.usage) == (answer.finish_reason, answer.usage)


def test_a_seed_gives_the_same_choices(client):
    drawn = generate(client, temperature=1.5)
    again = generate(client, temperature=1.5, seed=drawn.seed)
    other = generate(client, temperature=1.5, seed=drawn.seed ^ 1)
    assert again.token_ids == drawn.token_ids
    assert other.token_ids != drawn.token_ids


def test_a_stop_token_ends_the_answer(client):
    free = generate(client)
    stop = free.token_ids[4]
    at = free.token_ids.index(stop)
    stopped = generate(client, stop_token_ids=[stop])
    assert (stopped.finish_reason, stopped.token_ids) == ('stop', free.token_ids[:at])
    included = generate(client, stop_token_ids=[stop], include_stop=True)
    assert included.token_ids == free.token_ids[: at + 1]


def test_closing_a_stream_frees_its_lane(client):
    before = wait_idle(client).requests_cancelled
    stream = client.stream(**ENDLESS, cache=SLIDING)
    assert isinstance(next(stream), keyline.PromptInfo)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert stream.finish is None
    assert wait_idle(client).requests_cancelled == before + 1


def test_leaving_a_stream_frees_its_lane(client):
    before = wait_idle(client).requests_cancelled
    with client.stream(**ENDLESS, cache=SLIDING) as stream:
        next(stream)
    assert wait_idle(client).requests_cancelled == before + 1


def test_dropping_a_stream_frees_its_lane(address):
    with keyline.Client(address) as client:
        before = wait_idle(client).requests_cancelled
        for _ in client.stream(**ENDLESS, cache=SLIDING):
            break
        assert wait_idle(client).requests_cancelled == before + 1


def test_a_timeout_ends_a_call_and_frees_its_lane(client):
    with pytest.raises(keyline.DeadlineExceeded):
        client.generate(**ENDLESS, cache=SLIDING, timeout=0.05)
    with pytest.raises(keyline.DeadlineExceeded):
        list(client.stream(**ENDLESS, cache=SLIDING, timeout=0.05))
    wait_idle(client)


@pytest.mark.parametrize(
    ('options', 'field'),
    [
        ({'temperature': -1}, 'sampling.temperature'),
        ({'top_p': 0}, 'sampling.top_p'),
        ({'max_new_tokens': 0}, 'stopping.max_new_tokens'),
        ({'top_logprobs': 21, 'logprobs': True}, 'response.top_logprobs'),
        ({'cache': keyline.LastRecent(0)}, 'cache.cache_length[0]'),
        ({'cache': keyline.H2O(keep_initial_fraction=2)}, 'cache.h2o.keep_initial_fraction'),
        ({'stop': 'text'}, 'stopping.stop_strings'),
    ],
)
def test_a_field_out_of_bounds_is_named(client, options, field):
    with pytest.raises(keyline.InvalidArgument) as caught:
        generate(client, **options)
    assert [violation.field for violation in caught.value.field_violations] == [field]
    assert caught.value.details.startswith(f'{field}: ')
    with pytest.raises(keyline.InvalidArgument, match='^' + field.replace('[', r'\[')):
        list(client.stream(**{'token_ids': PROMPT, **options}))


@pytest.mark.parametrize(
    ('options', 'kind'),
    [
        ({'token_ids': []}, keyline.InvalidArgument),
        ({'token_ids': [320]}, keyline.InvalidArgument),
        ({'token_ids': None, 'prompt': 'text'}, keyline.InvalidArgument),
        ({'cache': keyline.QuantizedH2O()}, keyline.InvalidArgument),
        ({'cache': keyline.LastRecent(129)}, keyline.InvalidArgument),
        ({'cache': keyline.Dense(), 'max_new_tokens': 126}, keyline.InvalidArgument),
        ({'model': 'another'}, keyline.NotFound),
    ],
)
def test_what_cannot_be_served_is_refused(client, options, kind):
    with pytest.raises(kind) as caught:
        generate(client, **options)
    assert caught.value.details
    assert generate(client).usage.new_tokens == 12


@pytest.mark.parametrize(
    ('policy', 'name', 'length'),
    [
        (keyline.LastRecent(64, sinks=4), 'last_recent', 64),
        (keyline.H2O(96, grace=16, sinks=2), 'h2o', 96),
        (keyline.H2O(), 'h2o', 128),
    ],
)
def test_a_cache_is_chosen_and_reported(client, policy, name, length):
    new = 20
    answer = generate(
        client, token_ids=LONG_PROMPT, max_new_tokens=new, cache=policy, cache_report=True
    )
    report = answer.cache
    assert report.policy == name
    assert report.lane_bytes == client.model_info().lane_bytes
    assert [layer.layer for layer in report.layers] == [0, 1, 2]
    for layer in report.layers:
        assert (layer.cache_length, layer.slots_used) == (length, length)
        # The last token is never fed.
        assert layer.evicted == len(LONG_PROMPT) + new - 1 - length


def test_scores_are_the_answers_log_probabilities(client):
    answer = generate(client, logprobs=True)
    score = client.score(token_ids=PROMPT + answer.token_ids, decode_tail=12, cache_report=True)
    assert score.token_ids == PROMPT + answer.token_ids
    assert len(score.logprobs) == len(score.token_ids) - 1
    assert score.logprobs[len(PROMPT) - 1 :] == pytest.approx(answer.logprobs, abs=1e-5)
    assert score.usage.prompt_tokens == 16
    assert score.cache.layers[0].slots_used == 16


def test_a_smaller_cache_changes_scores(client):
    whole = client.score(token_ids=LONG_PROMPT[:120], cache=keyline.LastRecent(128))
    small = client.score(token_ids=LONG_PROMPT[:120], cache=keyline.LastRecent(32, chunk_size=8))
    assert small.logprobs[:16] == pytest.approx(whole.logprobs[:16], abs=1e-5)
    assert small.logprobs[-16:] != pytest.approx(whole.logprobs[-16:], abs=1e-3)


def test_hidden_states(client):
    size = client.model_info().hidden_size
    seen = []
    for layer in (0, 2, 3, None):
        for pooling in ('last', 'mean'):
            answer = client.embed(token_ids=PROMPT, layer=layer, pooling=pooling)
            assert len(answer.values) == size
            assert (answer.layer, answer.pooling) == (3 if layer is None else layer, pooling)
            assert answer.usage == keyline.Usage(prompt_tokens=4, new_tokens=0)
            seen.append(answer.values)
    assert seen[4:6] == seen[6:8]
    assert len({tuple(values) for values in seen[:6]}) == 6
    # One token: the mean is the last.
    alone = [client.embed(token_ids=[7], pooling=pooling).values for pooling in ('last', 'mean')]
    assert alone[0] == alone[1]
    report = client.embed(token_ids=LONG_PROMPT, cache=SLIDING, cache_report=True).cache
    assert report.layers[0].evicted == len(LONG_PROMPT) - 64


def test_hidden_states_are_refused_by_field(client):
    with pytest.raises(keyline.InvalidArgument, match='^layer: got 4, must be from 0 to 3'):
        client.embed(token_ids=PROMPT, layer=4)
    with pytest.raises(ValueError, match='pooling'):
        client.embed(token_ids=PROMPT, pooling='max')


def test_watching_the_caches(client, connect, address):
    before = client.cache_stats()
    assert [layer.layer for layer in before] == [0, 1, 2]
    assert all(layer.capacity == 2 * 128 and layer.bytes > 0 for layer in before)
    watcher = connect(address)
    events = watcher.watch_cache(request_id='watched', layers=[1])
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(lambda: [next(events) for _ in range(6)])
        generate(client)
        client.score(token_ids=LONG_PROMPT[:112], cache=SLIDING, request_id='watched')
        chunks = heard.result(30)
    # The cache is filled, in pieces that fit a pass (a token of each lane, a chunk and 4), then chunks
    # of 16 drop the oldest tokens but the sinks.
    assert [(event.first_position, event.tokens) for event in chunks] == [
        (0, 22),
        (22, 22),
        (44, 20),
        (64, 16),
        (80, 16),
        (96, 16),
    ]
    events.close()
    for event in chunks:
        assert (event.request_id, event.lost, list(event.layers)) == ('watched', 0, [1])
        for head in event.layers[1]:
            first = 4 + event.first_position - 64
            assert len(head.slots) == event.tokens
            assert head.evicted == (list(range(first, first + 16)) if first >= 4 else [])
    assert wait_idle(client).running == 0
    assert client.cache_stats()[0].evicted >= before[0].evicted + 48
    assert client.cache_stats()[0].slots_used == 0


def test_text_needs_a_tokenizer(client):
    with pytest.raises(keyline.Error, match='tokenizer'):
        client.tokenize('text')
    with pytest.raises(keyline.Error, match='tokenizer'):
        client.detokenize([1])


def test_many_callers_at_once_get_their_own_answers(connect, address):
    clients = [connect(address) for _ in range(3)]
    prompts = [[3 + i, 9, 20 + i] for i in range(12)]
    alone = [generate(clients[0], token_ids=prompt).token_ids for prompt in prompts]

    def ask(i):
        return generate(clients[i % 3], token_ids=prompts[i]).token_ids

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_a_drained_server_finishes_and_ends(connect, binary):
    with serve(binary, LLAMA, '--kv-cache-length', '64', '--lanes', '1') as (server, address):
        client = connect(address, max_attempts=1)
        stream = client.stream(token_ids=PROMPT, max_new_tokens=30, ignore_eos=True)
        next(stream)
        draining = client.drain()
        assert draining.running <= 1
        with pytest.raises(keyline.Unavailable):
            generate(client)
        tokens = [
            token
            for event in stream
            if isinstance(event, keyline.Delta)
            for token in event.token_ids
        ]
        assert len(tokens) == 30
        assert server.wait(30) == 0


@pytest.fixture(scope='session')
def certificate(tmp_path_factory):
    """(certificate, key) of 127.0.0.1, signed by itself."""
    if shutil.which('openssl') is None:
        pytest.skip('certificates need the openssl command')
    folder = tmp_path_factory.mktemp('certificate')
    pem, key = str(folder / 'server.pem'), str(folder / 'server.key')
    subprocess.run(
        ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256',
         '-nodes', '-days', '2', '-subj', '/CN=keyline', '-keyout', key, '-out', pem,
         '-addext', 'subjectAltName=DNS:keyline.test,IP:127.0.0.1'],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return pem, key


def test_tls_and_tokens(connect, binary, certificate, tmp_path):
    pem, key = certificate
    token = '0123456789abcdef-first'
    (tmp_path / 'tokens').write_text(token + '\n')
    flags = ['--tls-certificate', pem, '--tls-key', key, '--token-file', tmp_path / 'tokens']
    with serve(binary, LLAMA, '--lanes', '1', '--kv-cache-length', '64', *map(str, flags)) as (
        _,
        address,
    ):
        known = connect(address, server_ca_file=pem, token=token)
        known.wait_until_ready(30)
        assert len(generate(known).token_ids) == 12
        named = connect(address, server_ca_file=pem, token=token, server_name='keyline.test')
        assert len(generate(named).token_ids) == 12
        with pytest.raises(keyline.Unauthenticated):
            generate(connect(address, server_ca_file=pem))
        with pytest.raises(keyline.Unauthenticated):
            generate(connect(address, server_ca_file=pem, token='0123456789abcdef-wrong'))
        with pytest.raises(keyline.Unavailable):
            generate(connect(address, max_attempts=1))
