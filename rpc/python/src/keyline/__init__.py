"""Client of a keyline server: language models whose KV caches have a fixed size.

import keyline

with keyline.Client('127.0.0.1:50051') as client:
    answer = client.generate('Once upon a time', max_new_tokens=64, cache=keyline.H2O(256))
    print(answer.text)

keyline.aio.Client is the same for asyncio. What can be asked for is in keyline/requests.py and
keyline/cache.py, what comes back in keyline/answers.py.
"""

from keyline import aio
from keyline.answers import (
    Answer,
    CacheEvent,
    CacheReport,
    Delta,
    Draining,
    Embedding,
    Event,
    Finish,
    FinishReason,
    HeadCacheEvent,
    LayerCacheReport,
    LayerCacheStats,
    Load,
    ModelInfo,
    PromptInfo,
    Score,
    ServerInfo,
    Stage,
    Timings,
    TokenLogprob,
    Usage,
)
from keyline.cache import H2O, CachePolicy, Dense, LastRecent, ProtectedLastRecent, QuantizedH2O
from keyline.client import Client, Stream
from keyline.connection import ConnectionOptions
from keyline.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    FieldViolation,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from keyline.requests import (
    EmbedOptions,
    GenerateOptions,
    Message,
    PromptOptions,
    RequestOptions,
    ScoreOptions,
)
from keyline.sessions import SavedSession, Session, SessionOptions

__all__ = [
    'H2O',
    'Aborted',
    'AlreadyExists',
    'Answer',
    'CacheEvent',
    'CachePolicy',
    'CacheReport',
    'Cancelled',
    'Client',
    'ConnectionOptions',
    'DataLoss',
    'DeadlineExceeded',
    'Delta',
    'Dense',
    'Draining',
    'EmbedOptions',
    'Embedding',
    'Error',
    'Event',
    'FailedPrecondition',
    'FieldViolation',
    'Finish',
    'FinishReason',
    'GenerateOptions',
    'HeadCacheEvent',
    'Internal',
    'InvalidArgument',
    'LastRecent',
    'LayerCacheReport',
    'LayerCacheStats',
    'Load',
    'Message',
    'ModelInfo',
    'NotFound',
    'OutOfRange',
    'PermissionDenied',
    'PromptInfo',
    'PromptOptions',
    'ProtectedLastRecent',
    'QuantizedH2O',
    'RequestOptions',
    'ResourceExhausted',
    'SavedSession',
    'Score',
    'ScoreOptions',
    'ServerInfo',
    'Session',
    'SessionOptions',
    'Stage',
    'Stream',
    'Timings',
    'TokenLogprob',
    'Unauthenticated',
    'Unavailable',
    'Unimplemented',
    'Usage',
    'aio',
]
