"""What can be asked for: the keyword arguments of the clients' methods.

Whatever is left out, or None, is not sent, and takes the server's default, named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from keyline.cache import CachePolicy


class Message(TypedDict):
    """A turn of a chat."""

    role: str  # "system", "user" or "assistant"
    content: str  # special tokens written out here stay ordinary text


class PromptOptions(TypedDict, total=False):
    """What the model reads, if not the text that is given first. Exactly one of them is needed."""

    # Rendered by the model's chat template, up to where the assistant's answer begins.
    messages: Sequence[Message] | None
    # With text only. Put BOS first if the model's vocabulary asks for one. Default: True.
    add_bos: bool | None
    # With text only. Special tokens written in the text become their ids; leave it off for text
    # that others wrote. Default: False.
    parse_special: bool | None


class RequestOptions(PromptOptions, total=False):
    # Taken as they are: no BOS is added.
    token_ids: Sequence[int] | None
    # Default: the server's policy.
    cache: CachePolicy | None
    # Report what became of the cache. Default: False.
    cache_report: bool | None
    # For the server's log; at most 128 printable ASCII characters.
    request_id: str | None
    # NotFound unless it is the model served. Default: whichever is.
    model: str | None


class GenerateOptions(RequestOptions, total=False):
    # Goes on with this session (see Client.create_session): the prompt is what is new, and may be
    # left out where the answer before should simply go on. Not with `cache` and `prefix`.
    session_id: str | None
    # A prefix that other requests share, whose cache state the server keeps: a text that goes
    # before the prompt; or the number of the prompt's first tokens; or True, for the first of
    # `messages`, which is the system's. The answer is the same whether the state is found or not.
    prefix: str | int | None

    # From 1 to 16,777,216. Default: 256.
    max_new_tokens: int | None
    # End-of-text and stops do not count before. Default: 0.
    min_new_tokens: int | None
    # Texts that end the answer, across token borders; at most 16.
    stop: str | Sequence[str] | None
    # Besides the model's end-of-text tokens; at most 64.
    stop_token_ids: Sequence[int] | None
    # Go on after end-of-text. Default: False.
    ignore_eos: bool | None
    # The stop text or token is part of the answer. Default: False.
    include_stop: bool | None

    # Sampling, in this order: top_k, temperature, top_p, min_p.
    # From 0 (greedy: the likeliest token) to 100. Default: 0.
    temperature: float | None
    # Only the k likeliest tokens; 0 = all. Default: 0.
    top_k: int | None
    # Only the likeliest tokens that together have this probability; above 0. Default: 1.
    top_p: float | None
    # Only tokens at least this likely, relative to the likeliest. Default: 0.
    min_p: float | None
    # The same seed gives the same choices for the same prompt. Default: drawn by the server, and
    # told in the answer.
    seed: int | None

    # Text besides token ids. Default: True if the server has a tokenizer.
    text: bool | None
    # Log-probability (natural log, temperature 1, whole vocabulary) of every new token.
    # Default: False.
    logprobs: bool | None
    # Besides, the likeliest tokens at each place, at most 20. Needs `logprobs`. Default: 0.
    top_logprobs: int | None


class EmbedOptions(RequestOptions, total=False):
    # The hidden states at the start of this layer, from 0 (the embedding) to the model's number of
    # layers (after the last norm). Default: the number of layers.
    layer: int | None
    # The last token's state, or the mean over all tokens. Default: 'last'.
    pooling: Literal['last', 'mean'] | None


class ScoreOptions(RequestOptions, total=False):
    # The last tokens are fed one by one, as if they had been generated. Default: 0.
    decode_tail: int | None
