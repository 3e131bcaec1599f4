"""What servers answer. Times are seconds, log-probabilities natural, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Union

from keyline.cache import CachePolicy

#: "stop": end-of-text, a stop token or a stop text; "length": max_new_tokens, or the model's last
#: position.
FinishReason = Literal['stop', 'length']


class TokenLogprob(NamedTuple):
    """A token that might have come at a place."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class Usage:
    """How many tokens a request took."""

    prompt_tokens: int  #: with a session: of the whole conversation before the answer
    new_tokens: int
    cached_prompt_tokens: int = 0  #: of prompt_tokens, not computed: a session or prefix had them


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in seconds."""

    queued: float  #: before the first step that carries the request
    first_token: float  #: from arrival to the first token
    total: float  #: from arrival to the last token


@dataclass(frozen=True)
class LayerCacheReport:
    """One layer of a sequence's cache at its end."""

    layer: int
    cache_length: int  #: slots per KV head
    slots_used: int
    evicted: int  #: tokens dropped, per KV head
    protected_slots: int


@dataclass(frozen=True)
class CacheReport:
    """A sequence's cache at its end."""

    policy: str  #: by its name in configurations: "h2o_vnorm"
    storage: str  #: number format of keys and values: "plain", "int8", ...
    lane_bytes: int  #: over all layers; does not depend on the sequence's length
    chunk_size: int  #: tokens of the prompt's chunks after the first, asked for or by default
    layers: list[LayerCacheReport]


@dataclass(frozen=True)
class PromptInfo:
    """Opens a stream."""

    prompt_tokens: int
    seed: int  #: the one in use


@dataclass(frozen=True)
class Delta:
    """New tokens of a stream, in order; a client that reads slowly gets fewer and larger ones."""

    first_index: int  #: token_ids[i] is the answer's token first_index + i
    token_ids: list[int]
    text: str  #: whole characters; may lag behind the tokens
    logprobs: list[float]  #: one a token, if asked for
    top_logprobs: list[list[TokenLogprob]]  #: for each token the likeliest, if asked for


@dataclass(frozen=True)
class Finish:
    """Ends a stream."""

    reason: FinishReason
    stop: str  #: the stop text that matched, if one did
    usage: Usage
    timings: Timings
    cache: CacheReport | None  #: if asked for


Event = Union[PromptInfo, Delta, Finish]


@dataclass(frozen=True)
class Answer:
    """A whole answer: what the events of a stream add up to."""

    text: str
    token_ids: list[int]
    logprobs: list[float] = field(repr=False)  #: one a token, if asked for
    top_logprobs: list[list[TokenLogprob]] = field(repr=False)  #: if asked for
    seed: int  #: the one in use
    finish_reason: FinishReason
    stop: str  #: the stop text that matched, if one did
    usage: Usage
    timings: Timings
    cache: CacheReport | None  #: if asked for


@dataclass(frozen=True)
class Score:
    """How likely the given tokens are."""

    token_ids: list[int]
    logprobs: list[float]  #: [i] is that of token_ids[i + 1], given all before it: one less
    usage: Usage
    timings: Timings
    cache: CacheReport | None  #: if asked for


@dataclass(frozen=True)
class Embedding:
    """Hidden states of the given tokens, pooled to one vector."""

    values: list[float] = field(repr=False)  #: hidden_size numbers; their length is not normalised
    layer: int  #: whose start they are from; the number of layers: after the last norm
    pooling: Literal['last', 'mean']
    usage: Usage
    timings: Timings
    cache: CacheReport | None  #: if asked for


@dataclass(frozen=True)
class ServerInfo:
    """The program that serves."""

    version: str
    uptime: float  #: seconds
    draining: bool
    max_request_bytes: int  #: larger requests end with ResourceExhausted
    max_text_bytes: int  #: longer text prompts end with InvalidArgument


@dataclass(frozen=True)
class ModelInfo:
    """The model that is served, and its caches."""

    name: str
    family: str  #: "llama", "qwen3", ...
    dtype: str  #: of activations and of weights that are not quantised
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    weight_bytes: int
    has_tokenizer: bool  #: False: prompts must be token ids, and answers have no text
    eos_token_ids: list[int]
    bos_token_id: int | None
    default_cache: CachePolicy | None  #: None if it is one that requests cannot ask for
    enabled_policies: list[str]  #: that requests may ask for, by their names in configurations
    storage: str  #: number format of keys and values
    lanes: int  #: sequences that run at the same time
    lane_bytes: int  #: one lane over all layers, whatever the sequence's length


@dataclass(frozen=True)
class Stage:
    """The layers of one rank, and what they take."""

    rank: int
    device: str
    first_layer: int
    layers: int
    has_embedding: bool
    has_head: bool
    weight_bytes: int
    kv_bytes: int  #: of all lanes
    workspace_bytes: int
    host: str


@dataclass(frozen=True)
class Load:
    """How busy a server is; the last eight are counts since its start."""

    lanes: int
    running: int  #: requests that hold a lane
    waiting: int
    waiting_tokens: int  #: prompt and answer tokens of those that wait
    draining: bool
    steps: int
    requests_accepted: int
    requests_finished: int
    requests_cancelled: int
    requests_failed: int
    requests_refused: int
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class LayerCacheStats:
    """The caches of one layer, all lanes; slots and evictions per KV head."""

    layer: int
    rank: int
    capacity: int  #: slots of all lanes
    slots_used: int  #: by requests that run
    evicted: int  #: tokens dropped since the start
    bytes: int  #: of all lanes, used or not


@dataclass(frozen=True)
class HeadCacheEvent:
    """What a chunk did to one KV head: first all moves at once, then the writes."""

    slots: list[int]  #: slots[i] took the token at first_position + i
    moved_from: list[int]  #: the token in slot moved_from[i] went to slot moved_to[i]
    moved_to: list[int]
    evicted: list[int]  #: positions of the tokens that were dropped, ascending


@dataclass(frozen=True)
class CacheEvent:
    """What one chunk of a request (or a piece of its first chunk) did to its caches."""

    lost: int  #: events that were lost right before this one, because they were read too slowly
    request: int  #: the engine's number of it
    request_id: str
    first_position: int
    tokens: int
    layers: dict[int, list[HeadCacheEvent]]  #: by layer, one a KV head


@dataclass(frozen=True)
class Draining:
    """What a server that drains has still to finish."""

    running: int
    waiting: int
