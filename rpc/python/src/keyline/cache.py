"""Which tokens stay in a sequence's KV cache of fixed size, and what became of it.

A server enables some policies (`Client.model_info().enabled_policies`). An argument that is None is
not sent: it takes the server's own value if its default policy is the same one, and otherwise the
default named here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from keyline.protocol import fill, value_of


@dataclass(frozen=True)
class CachePolicy:
    """What all policies share; ask for one of the classes below."""

    #: Slots per KV head: one number for all layers, or one per layer. Default: the server's, which
    #: is also the most that can be asked for.
    cache_length: int | Sequence[int] | None = None
    #: Tokens of a prompt's chunks after the first. Default: the server's, or the largest that fits
    #: this policy and length.
    chunk_size: int | None = None

    field: ClassVar[str]  # of the message CachePolicy


@dataclass(frozen=True)
class Dense(CachePolicy):
    """Keeps every token: prompt + max_new_tokens - 1 must fit into cache_length."""

    field = 'dense'


@dataclass(frozen=True)
class LastRecent(CachePolicy):
    """Keeps the first `sinks` tokens and the most recent ones."""

    #: Default: min(16, max(cache_length / 8, 1)).
    sinks: int | None = None

    field = 'last_recent'


@dataclass(frozen=True)
class ProtectedLastRecent(LastRecent):
    """As LastRecent, and never evicts the prompt's tokens [protect_begin, protect_end)."""

    #: Default: 0.
    protect_begin: int | None = None
    #: Default: protect_begin, so that nothing is protected.
    protect_end: int | None = None
    #: Caps the range's share of cache_length, from 0 to 1. Default: 0.5.
    max_protected_fraction: float | None = None
    #: Instead of a range: from the prompt's start to the end of the first match of this regular
    #: expression (RE2), such as the end marker of a system prompt. Default: no marker.
    protect_until: str | None = None

    field = 'protected_last_recent'


@dataclass(frozen=True)
class H2O(CachePolicy):
    """Keeps the tokens that received most attention (heavy hitters) and the most recent ones."""

    #: Weigh attention by the norm of the value it reads. Default: False.
    value_norms: bool | None = None
    #: Rank by score per step that a token has been in the cache for. Default: False.
    normalize_scores: bool | None = None
    #: The last `grace` tokens are never evicted; less than cache_length. Default: 0.
    grace: int | None = None
    #: The first slots are never evicted. Default: 0.
    sinks: int | None = None
    #: Share of the first slots that the first eviction spares if there are no scores yet, from 0
    #: to 1. Default: 0.05.
    keep_initial_fraction: float | None = None
    #: Lowers chunk_size; 0 = does not. Default: 0.
    max_chunk: int | None = None

    field = 'h2o'


@dataclass(frozen=True)
class QuantizedH2O(H2O):
    """As H2O, and keeps tokens rather whose keys and values lose much when quantised.

    Only on a server with a quantised number format.
    """

    field = 'quantized_h2o'


_POLICIES: dict[str, type[CachePolicy]] = {
    policy.field: policy for policy in (Dense, LastRecent, ProtectedLastRecent, H2O, QuantizedH2O)
}
_SHARED = {shared.name for shared in fields(CachePolicy)}


def _own(policy: CachePolicy | type[CachePolicy]) -> list[str]:
    return [own.name for own in fields(policy) if own.name not in _SHARED]


def write_policy(policy: CachePolicy | None, message: Any) -> None:
    if policy is None:
        return
    if type(policy) not in _POLICIES.values():
        names = ', '.join(kind.__name__ for kind in _POLICIES.values())
        raise TypeError(f'cache: got {policy!r}, must be {names}')
    length: Any = policy.cache_length
    if length is not None and not isinstance(length, Sequence):
        length = [length]
    fill(message, cache_length=length, chunk_size=policy.chunk_size)
    own = getattr(message, policy.field)
    own.SetInParent()  # even if nothing in it is set
    fill(own, **{name: getattr(policy, name) for name in _own(policy)})


def read_policy(message: Any) -> CachePolicy | None:
    """None if no policy is set."""
    field = message.WhichOneof('policy')
    if field is None:
        return None
    lengths = tuple(message.cache_length)
    own = getattr(message, field)
    return _POLICIES[field](
        cache_length=lengths[0] if len(lengths) == 1 else lengths or None,
        chunk_size=value_of(message, 'chunk_size'),
        **{name: value_of(own, name) for name in _own(_POLICIES[field])},
    )
