"""Each call a client can make: its method, its request, and how its answer is read.

Shared by client.py and aio.py, which differ only in how they wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Callable, Generic, TypeVar

from keyline import answers
from keyline.cache import read_policy, write_policy
from keyline.errors import Unavailable
from keyline.protocol import Method, fill, method, value_of
from keyline.requests import EmbedOptions, GenerateOptions, PromptOptions, ScoreOptions

T = TypeVar('T')

_INFERENCE = 'keyline.v1.Inference'
_CONTROL = 'keyline.v1.Control'
_GENERATE = method(_INFERENCE, 'Generate')
_STREAM = method(_INFERENCE, 'GenerateStream')
_SCORE = method(_INFERENCE, 'Score')
_EMBED = method(_INFERENCE, 'Embed')
_TOKENIZE = method(_INFERENCE, 'Tokenize')
_DETOKENIZE = method(_INFERENCE, 'Detokenize')
_HEALTH = method('grpc.health.v1.Health', 'Check')
_WATCH = method(_CONTROL, 'WatchCacheEvents')
_SERVING = 1


@dataclass(frozen=True)
class Call(Generic[T]):
    method: Method
    request: Any
    read: Callable[[Any], T]  # from a response, or from an event of a stream


# ---- Asking --------------------------------------------------------------------------------------


def _options(given: Any, known: Any) -> dict[str, Any]:
    """A copy of keyword arguments, all of which the TypedDict `known` has."""
    for name in given:
        if name not in known.__optional_keys__:
            names = ', '.join(sorted(known.__optional_keys__))
            raise TypeError(f'{name}: there is no such argument; there are {names}')
    return dict(given)


def _take(options: dict[str, Any], message: Any) -> None:
    """Moves those options into `message` that it has fields for."""
    names = message.DESCRIPTOR.fields_by_name
    fill(message, **{name: options.pop(name) for name in list(options) if name in names})


def _take_prompt(text: str | None, options: dict[str, Any], prompt: Any) -> None:
    token_ids, messages = options.pop('token_ids', None), options.pop('messages', None)
    given = 3 - [text, token_ids, messages].count(None)
    if given == 0 and options.get('session_id'):
        return
    if given != 1:
        raise TypeError('a text, token_ids or messages: exactly one of them is needed')
    fill(prompt, text=text)
    for name in ('add_bos', 'parse_special'):
        fill(prompt, **{name: options.pop(name, None)})
    if token_ids is not None:
        prompt.token_ids.SetInParent()  # even if empty: the server says what is wrong with that
        fill(prompt.token_ids, ids=token_ids)
    if messages is not None:
        prompt.chat.SetInParent()
        for message in messages:
            fill(prompt.chat.messages.add(), **message)


def _take_prefix(prefix: str | int | None, request: Any) -> None:
    if isinstance(prefix, bool):
        fill(request.prefix, system_message=prefix or None)
    elif isinstance(prefix, int):
        fill(request.prefix, tokens=prefix)
    elif prefix is not None:
        fill(request.prefix, text=prefix)


def _generate_request(text: str | None, given: GenerateOptions) -> Any:
    options = _options(given, GenerateOptions)
    request = _GENERATE.request()
    _take_prompt(text, options, request.prompt)
    write_policy(options.pop('cache', None), request.cache)
    _take_prefix(options.pop('prefix', None), request)
    stop = options.pop('stop', None)
    fill(request.stopping, stop_strings=[stop] if isinstance(stop, str) else stop)
    for part in (request.sampling, request.stopping, request.response, request):
        _take(options, part)
    return request


# ---- Answering -----------------------------------------------------------------------------------


def _read(kind: type[T], message: Any, **special: Any) -> T:
    """The dataclass `kind` from the message's fields of the same names, but for `special` ones."""
    names = (field.name for field in fields(kind))  # type: ignore[arg-type]
    plain = {name: value_of(message, name) for name in names if name not in special}
    return kind(**plain, **special)


def _read_cache(message: Any) -> answers.CacheReport | None:
    """Of a message that has a report, maybe."""
    if not message.HasField('cache'):
        return None
    layers = [_read(answers.LayerCacheReport, layer) for layer in message.cache.layers]
    return _read(answers.CacheReport, message.cache, layers=layers)


def _read_accounts(message: Any) -> dict[str, Any]:
    """What Finish and ScoreResponse have in common."""
    return {
        'usage': _read(answers.Usage, message.usage),
        'timings': _read(answers.Timings, message.timings),
        'cache': _read_cache(message),
    }


def _read_delta(message: Any) -> answers.Delta:
    top = [
        [answers.TokenLogprob(*pair) for pair in zip(place.token_ids, place.logprobs)]
        for place in message.top_logprobs
    ]
    return _read(answers.Delta, message, top_logprobs=top)


def _word(message: Any, name: str, prefix: str) -> Any:
    """An enum's value as a word: FINISH_REASON_STOP is "stop"."""
    values = message.DESCRIPTOR.fields_by_name[name].enum_type.values_by_number
    return values[getattr(message, name)].name[len(prefix) :].lower()


def _read_finish(message: Any) -> answers.Finish:
    return _read(
        answers.Finish,
        message,
        reason=_word(message, 'reason', 'FINISH_REASON_'),
        **_read_accounts(message),
    )


def _read_event(message: Any) -> answers.Event:
    kind = message.WhichOneof('event')
    if kind == 'prompt_info':
        return _read(answers.PromptInfo, message.prompt_info)
    return _read_delta(message.delta) if kind == 'delta' else _read_finish(message.finish)


def _read_answer(message: Any) -> answers.Answer:
    output, finish = _read_delta(message.output), _read_finish(message.finish)
    return answers.Answer(
        text=output.text,
        token_ids=output.token_ids,
        logprobs=output.logprobs,
        top_logprobs=output.top_logprobs,
        seed=message.prompt_info.seed,
        finish_reason=finish.reason,
        stop=finish.stop,
        usage=finish.usage,
        timings=finish.timings,
        cache=finish.cache,
    )


def _read_model_info(message: Any) -> answers.ModelInfo:
    return _read(answers.ModelInfo, message, default_cache=read_policy(message.default_cache))


def _read_ready(message: Any) -> None:
    if message.status != _SERVING:
        raise Unavailable('the server takes no requests')


# ---- Calls ---------------------------------------------------------------------------------------


def generate(text: str | None, options: GenerateOptions) -> Call[answers.Answer]:
    return Call(_GENERATE, _generate_request(text, options), _read_answer)


def stream(text: str | None, options: GenerateOptions) -> Call[answers.Event]:
    return Call(_STREAM, _generate_request(text, options), _read_event)


def score(text: str | None, given: ScoreOptions) -> Call[answers.Score]:
    options = _options(given, ScoreOptions)
    request = _SCORE.request()
    _take_prompt(text, options, request.prompt)
    write_policy(options.pop('cache', None), request.cache)
    _take(options, request)
    return Call(
        _SCORE,
        request,
        lambda message: _read(answers.Score, message, **_read_accounts(message)),
    )


def _read_embedding(message: Any) -> answers.Embedding:
    return _read(
        answers.Embedding,
        message,
        pooling=_word(message, 'pooling', 'POOLING_'),
        **_read_accounts(message),
    )


def embed(text: str | None, given: EmbedOptions) -> Call[answers.Embedding]:
    options = _options(given, EmbedOptions)
    request = _EMBED.request()
    _take_prompt(text, options, request.prompt)
    write_policy(options.pop('cache', None), request.cache)
    pooling = options.pop('pooling', None)
    if pooling not in (None, 'last', 'mean'):
        raise ValueError(f"pooling: got {pooling!r}, must be 'last' or 'mean'")
    fill(request, pooling=pooling and {'last': 1, 'mean': 2}[pooling])
    _take(options, request)
    return Call(_EMBED, request, _read_embedding)


def tokenize(text: str | None, given: PromptOptions) -> Call[list[int]]:
    request = _TOKENIZE.request()
    _take_prompt(text, _options(given, PromptOptions), request.prompt)
    return Call(_TOKENIZE, request, lambda message: list(message.token_ids))


def detokenize(token_ids: Sequence[int], keep_special: bool | None) -> Call[str]:
    request = _DETOKENIZE.request()
    fill(request, token_ids=token_ids, keep_special=keep_special)
    return Call(_DETOKENIZE, request, lambda message: str(message.text))


def _read_cache_event(message: Any) -> answers.CacheEvent:
    layers = {
        layer.layer: [_read(answers.HeadCacheEvent, head) for head in layer.heads]
        for layer in message.layers
    }
    return _read(answers.CacheEvent, message, layers=layers)


def watch(request_id: str | None, layers: Sequence[int] | None) -> Call[answers.CacheEvent]:
    request = _WATCH.request()
    fill(request, request_id=request_id, layers=layers)
    return Call(_WATCH, request, _read_cache_event)


def _control(name: str, read: Callable[[Any], T]) -> Call[T]:
    found = method(_CONTROL, name)
    return Call(found, found.request(), read)


SERVER_INFO = _control('GetServerInfo', lambda message: _read(answers.ServerInfo, message))
MODEL_INFO = _control('GetModelInfo', _read_model_info)
PLACEMENT = _control(
    'GetPlacement',
    lambda message: [_read(answers.Stage, stage) for stage in message.stages],
)
LOAD = _control('GetLoad', lambda message: _read(answers.Load, message))
CACHE_STATS = _control(
    'GetCacheStats',
    lambda message: [_read(answers.LayerCacheStats, layer) for layer in message.layers],
)
DRAIN = _control('Drain', lambda message: _read(answers.Draining, message))
READY = Call(_HEALTH, _HEALTH.request(service=_INFERENCE), _read_ready)
