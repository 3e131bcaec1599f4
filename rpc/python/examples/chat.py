#!/usr/bin/env python3
"""A chat in the terminal: each answer appears while it is made.

    chat.py [ADDRESS] [--system TEXT] [--cache-length N] ...

Ctrl-C ends an answer, Ctrl-D or an empty line the chat. The model reads the whole conversation each
time; with --cache-length it keeps N tokens of it that matter most, however long it gets.
"""

from __future__ import annotations

import argparse
import sys

import keyline


def answer(client: keyline.Client, options: keyline.GenerateOptions) -> str:
    """Prints an answer while it comes; Ctrl-C cancels the rest of it."""
    said = ''
    with client.stream(**options) as stream:
        try:
            for text in stream.texts():
                print(text, end='', flush=True)
                said += text
        except KeyboardInterrupt:
            pass
    print()
    if stream.finish:
        usage, timings = stream.finish.usage, stream.finish.timings
        first = f'first after {timings.first_token:.2f} s'
        made = f'{usage.prompt_tokens} + {usage.new_tokens} tokens in {timings.total:.2f} s'
        print(f'[{made}, {first}]', file=sys.stderr)
    return said


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument('address', nargs='?', default='127.0.0.1:50051', help='host:port')
    parser.add_argument('--system', help='what the model is told first')
    parser.add_argument('--temperature', type=float, default=0.7)
    parser.add_argument('--top-p', type=float, default=0.9)
    parser.add_argument('--max-new-tokens', type=int, default=512)
    parser.add_argument(
        '--cache-length',
        type=int,
        help='ask for H2O with so many slots, which the server must enable',
    )
    parser.add_argument('--ca', help='PEM file; the server has TLS')
    parser.add_argument('--token', help='bearer token; needs --ca')
    flags = parser.parse_args()

    messages: list[keyline.Message] = []
    if flags.system:
        messages.append({'role': 'system', 'content': flags.system})
    options: keyline.GenerateOptions = {
        'messages': messages,
        'temperature': flags.temperature,
        'top_p': flags.top_p,
        'max_new_tokens': flags.max_new_tokens,
        'cache': keyline.H2O(flags.cache_length) if flags.cache_length else None,
    }
    try:
        with keyline.Client(flags.address, server_ca_file=flags.ca, token=flags.token) as client:
            client.wait_until_ready(30)
            print(client.model_info().name, file=sys.stderr)
            while line := input('> '):
                messages.append({'role': 'user', 'content': line})
                messages.append({'role': 'assistant', 'content': answer(client, options)})
    except (EOFError, KeyboardInterrupt):
        print()
    except keyline.Error as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
