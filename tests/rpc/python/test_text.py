"""Text in and out, against a real model with a tokenizer."""

import pytest

import keyline

PROMPT = 'The capital of France is'
CHAT = [{'role': 'user', 'content': 'What is the capital of France?'}]


@pytest.fixture
def client(connect, text_address):
    return connect(text_address)


def test_tokens_and_back(client):
    text = 'Grüße, 世界 🌍!'
    tokens = client.tokenize(text, add_bos=False)
    assert client.detokenize(tokens) == text
    assert client.model_info().has_tokenizer


def test_special_tokens_are_text_unless_asked_for(client):
    (eos, *_) = client.model_info().eos_token_ids
    written = client.detokenize([eos], keep_special=True)
    assert written
    assert client.detokenize([eos]) == ''
    assert client.tokenize(written, add_bos=False, parse_special=True) == [eos]
    assert eos not in client.tokenize(written, add_bos=False)


def test_a_stream_has_the_text_of_the_answer(client):
    options = {'max_new_tokens': 8, 'ignore_eos': True}
    answer = client.generate(PROMPT, **options)
    assert answer.text
    stream = client.stream(PROMPT, **options)
    assert ''.join(stream.texts()) == answer.text
    assert stream.finish.usage == answer.usage
    assert client.generate(token_ids=client.tokenize(PROMPT), **options).text == answer.text
    assert client.generate(PROMPT, text=False, **options).text == ''


def test_a_stop_text_ends_the_answer(client):
    free = client.generate(PROMPT, max_new_tokens=8, ignore_eos=True).text
    stop = free[len(free) // 2 :][:3]
    stopped = client.generate(PROMPT, max_new_tokens=8, ignore_eos=True, stop=stop)
    assert (stopped.finish_reason, stopped.stop) == ('stop', stop)
    assert stopped.text == free[: free.index(stop)]


def test_chat(client):
    assert len(client.tokenize(messages=CHAT)) > len(client.tokenize(CHAT[0]['content']))
    answer = client.generate(messages=CHAT, max_new_tokens=12)
    assert 'Paris' in answer.text
    with pytest.raises(keyline.InvalidArgument):
        client.generate(messages=[{'role': 'nobody', 'content': 'x'}])
