import os

import pytest
from blocking import BlockingClient
from serving import LLAMA, serve

import keyline


@pytest.fixture(params=[keyline.Client, BlockingClient], ids=['sync', 'aio'])
def connect(request):
    """Makes clients, which are closed after the test."""
    made = []

    def make(address, **options):
        made.append(request.param(address, **options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture(scope='session')
def binary():
    path = os.environ.get('KEYLINE_BINARY')
    if not path:
        pytest.skip('KEYLINE_BINARY does not name the program')
    return path


@pytest.fixture(scope='session')
def address(binary):
    """Of a server of a tiny model without a tokenizer, with two lanes of 128 slots."""
    flags = ['--kv-cache-length', '128', '--lanes', '2', '--kv-chunk', '16']
    flags += ['--kv-enabled', 'last_recent,h2o']
    with serve(binary, LLAMA, *flags) as (_, where):
        yield where


@pytest.fixture(scope='session')
def text_address(binary):
    """Of a server of a real model with a tokenizer."""
    model = os.environ.get('KEYLINE_TEXT_MODEL')
    if not model:
        pytest.skip('KEYLINE_TEXT_MODEL does not name a model with a tokenizer')
    with serve(binary, model, '--kv-cache-length', '256', '--lanes', '2') as (_, where):
        yield where


@pytest.fixture
def client(connect, address):
    return connect(address)
