"""What is put into requests, and that every field of the interface has its place."""

from dataclasses import fields

import pytest

import keyline
from keyline import answers, calls
from keyline.cache import read_policy
from keyline.protocol import Method, message_type

GENERATE = message_type('keyline.v1.GenerateRequest')


def names(message):
    return {field.name for field in message_type(f'keyline.v1.{message}').DESCRIPTOR.fields}


def test_what_is_not_given_is_not_sent():
    want = GENERATE(prompt={'text': 'x'})
    assert calls.generate('x', {}).request == want
    unset = dict.fromkeys(keyline.GenerateOptions.__optional_keys__)
    assert calls.generate('x', unset).request == want
    assert calls.stream('x', {}).request == want
    assert calls.score('x', {}).request == calls.score('x', {'decode_tail': None}).request


def test_each_argument_goes_to_its_field():
    request = calls.generate(
        None,
        {
            'messages': [{'role': 'user', 'content': 'hi'}],
            'max_new_tokens': 7,
            'stop': 'end',
            'stop_token_ids': (1, 2),
            'ignore_eos': False,
            'temperature': 0,
            'seed': 2**64 - 1,
            'text': False,
            'top_logprobs': 3,
            'request_id': 'me',
            'cache': keyline.H2O(64, grace=0),
        },
    ).request
    assert request == GENERATE(
        request_id='me',
        prompt={'chat': {'messages': [{'role': 'user', 'content': 'hi'}]}},
        sampling={'temperature': 0, 'seed': 2**64 - 1},
        stopping={
            'max_new_tokens': 7,
            'stop_token_ids': [1, 2],
            'stop_strings': ['end'],
            'ignore_eos': False,
        },
        response={'text': False, 'top_logprobs': 3},
        cache={'cache_length': [64], 'h2o': {'grace': 0}},
    )
    assert request.cache.h2o.HasField('grace')
    assert not request.cache.h2o.HasField('sinks')


@pytest.mark.parametrize(
    ('options', 'what'),
    [
        ({}, 'exactly one'),
        ({'token_ids': [1], 'messages': []}, 'exactly one'),
        ({'token_ids': [-1]}, 'ids: Value out of range: -1'),
        ({'token_ids': [1], 'seed': 2**70}, 'seed: Value out of range'),
        ({'token_ids': [1], 'top_k': 1.5}, 'top_k: '),
        ({'token_ids': [1], 'cache': 'h2o'}, 'cache: got .h2o., must be Dense, LastRecent'),
        ({'token_ids': [1], 'beams': 4}, 'beams: there is no such argument; there are add_bos'),
        ({'messages': [{'role': 'user', 'contents': ''}]}, 'contents: '),
    ],
)
def test_wrong_arguments_are_named(options, what):
    with pytest.raises((TypeError, ValueError), match=what):
        calls.generate(None, options)


@pytest.mark.parametrize(
    'policy',
    [
        keyline.Dense(),
        keyline.Dense((64, 32), chunk_size=16),
        keyline.LastRecent(64, sinks=0),
        keyline.ProtectedLastRecent(protect_begin=1, protect_end=9, max_protected_fraction=0.25),
        keyline.ProtectedLastRecent(protect_until='</system>'),
        keyline.H2O(128, value_norms=True, normalize_scores=False, keep_initial_fraction=0.5),
        keyline.QuantizedH2O(grace=16, max_chunk=8),
    ],
    ids=lambda policy: policy.field,
)
def test_policies_come_back_as_they_were_sent(policy):
    assert read_policy(calls.generate('x', {'cache': policy}).request.cache) == policy


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (answers.Usage, 'Usage'),
        (answers.Timings, 'Timings'),
        (answers.LayerCacheReport, 'LayerCacheReport'),
        (answers.CacheReport, 'CacheReport'),
        (answers.PromptInfo, 'PromptInfo'),
        (answers.Delta, 'Delta'),
        (answers.Finish, 'Finish'),
        (answers.Score, 'ScoreResponse'),
        (answers.Embedding, 'EmbedResponse'),
        (answers.LayerCacheStats, 'LayerCacheStats'),
        (answers.CacheEvent, 'CacheEvent'),
        (answers.HeadCacheEvent, 'HeadCacheEvent'),
        (answers.ServerInfo, 'GetServerInfoResponse'),
        (answers.ModelInfo, 'GetModelInfoResponse'),
        (answers.Stage, 'Stage'),
        (answers.Load, 'GetLoadResponse'),
        (answers.Draining, 'DrainResponse'),
    ],
)
def test_answers_have_the_fields_of_their_message(kind, message):
    assert {field.name for field in fields(kind)} == names(message)


def test_arguments_are_the_fields_of_the_requests():
    prompt = names('Prompt') - {'text', 'chat'} | {'messages'}
    parts = names('Stopping') - {'stop_strings'} | {'stop'} | names('Sampling')
    request = names('GenerateRequest') - {'prompt', 'sampling', 'stopping', 'response'}
    want = prompt | parts | request | names('ResponseOptions')
    assert keyline.GenerateOptions.__optional_keys__ == want
    want = prompt | names('ScoreRequest') - {'prompt'}
    assert keyline.ScoreOptions.__optional_keys__ == want
    want = prompt | names('EmbedRequest') - {'prompt'}
    assert keyline.EmbedOptions.__optional_keys__ == want
    assert keyline.PromptOptions.__optional_keys__ == prompt - {'token_ids'}


@pytest.mark.parametrize(
    ('kind', 'message'),
    [
        (keyline.Dense, 'DensePolicy'),
        (keyline.LastRecent, 'LastRecentPolicy'),
        (keyline.ProtectedLastRecent, 'ProtectedLastRecentPolicy'),
        (keyline.H2O, 'H2OPolicy'),
        (keyline.QuantizedH2O, 'QuantizedH2OPolicy'),
    ],
)
def test_policies_have_the_fields_of_their_message(kind, message):
    shared = names('CachePolicy') - {'dense', 'last_recent', 'protected_last_recent'}
    shared -= {'h2o', 'quantized_h2o'}
    assert {field.name for field in fields(kind)} == shared | names(message)


@pytest.mark.parametrize(
    ('service', 'message'),
    [('Inference', 'GenerateRequest'), ('Control', 'GetLoadRequest')],
)
def test_each_method_of_the_services_has_a_call(service, message):
    used = [call.method.path for call in vars(calls).values() if isinstance(call, calls.Call)]
    used += [found.path for found in vars(calls).values() if isinstance(found, Method)]
    file = message_type(f'keyline.v1.{message}').DESCRIPTOR.file
    for method in file.services_by_name[service].methods:
        assert f'/keyline.v1.{service}/{method.name}' in used
