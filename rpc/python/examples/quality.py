#!/usr/bin/env python3
"""What a cache budget costs: the loss under several policies and lengths, as a table and a plot.

    KEYLINE_TEXT=opticks.txt quality.py

Asks a running server, so nothing but the client and matplotlib is needed here. The cells are a
notebook's (`# %%`) for editors that know them. The settings are the first cell's.
"""

# %% [markdown]
# # What a cache budget costs
#
# A dense KV cache keeps every token. A cache of fixed length keeps some, and the policy decides
# which. `Score` feeds the model a text's own tokens and tells how likely each was; fed the same
# tokens under another cache, the model is a little more surprised. That surprise, in nats per
# token, is the price of the budget. Only tokens that are predicted once the cache is full pay it.

# %%
from __future__ import annotations

import os
import random
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

import keyline

ADDRESS = os.environ.get('KEYLINE_ADDRESS', '127.0.0.1:50051')
TEXT = os.environ.get('KEYLINE_TEXT', '')  # a file; '': numbers at random, to try this script
WINDOW = int(os.environ.get('KEYLINE_WINDOW', '1024'))  # tokens of a piece of the text
WINDOWS = int(os.environ.get('KEYLINE_WINDOWS', '4'))
FRACTIONS = (1 / 2, 1 / 4, 1 / 8)  # of the window: the lengths of the caches
CHUNK = int(os.environ.get('KEYLINE_CHUNK', '64'))  # the same everywhere: it changes answers
PLOT = os.environ.get('KEYLINE_PLOT', 'quality.svg')

# %% [markdown]
# ## The policies
#
# Those of them that the server has. H2O keeps the tokens that were looked at most; with value norms
# and normalised scores it is the one to take. All keep the first four tokens, which models lean on.


# %%
def policies(length: int) -> dict[str, keyline.CachePolicy]:
    """By their names in configurations."""
    grace = length // 4
    return {
        'last_recent': keyline.LastRecent(length, CHUNK, sinks=4),
        'h2o': keyline.H2O(length, CHUNK, sinks=4, grace=grace),
        'h2o_vnorm': keyline.H2O(
            length, CHUNK, sinks=4, grace=grace, value_norms=True, normalize_scores=True
        ),
    }


client = keyline.Client(ADDRESS)
client.wait_until_ready(60)
model = client.model_info()
enabled = [name for name in policies(64) if name in model.enabled_policies]
if not enabled or 'dense' not in model.enabled_policies:
    raise SystemExit(f'the server must enable dense and one of {", ".join(policies(64))}')
print(f'{model.name}, {model.storage} caches: {", ".join(enabled)}')

# %% [markdown]
# ## The text, in windows

# %%
if TEXT:
    ids = client.tokenize(Path(TEXT).read_text(encoding='utf-8'), add_bos=False)
else:
    ids = random.Random(1).choices(range(3, model.vocab_size), k=WINDOW * WINDOWS)
windows = [ids[at : at + WINDOW] for at in range(0, len(ids) - WINDOW + 1, WINDOW)][:WINDOWS]
if not windows:
    raise SystemExit(f'the text has {len(ids)} tokens, a window needs {WINDOW}')

# %% [markdown]
# ## Measuring
#
# Every window under every cache, and under a dense one: the difference of the two, over the tokens
# that come after `length`.


# %%
def losses(cache: keyline.CachePolicy) -> list[list[float]]:
    """Of each window, of each token but the first."""
    return [[-x for x in client.score(token_ids=ids, cache=cache).logprobs] for ids in windows]


def mean_after(rows: list[list[float]], length: int) -> float:
    late = [loss for row in rows for loss in row[length:]]
    return sum(late) / len(late)


dense = losses(keyline.Dense(WINDOW))
price: dict[str, dict[int, float]] = {name: {} for name in enabled}
for fraction in FRACTIONS:
    length = int(WINDOW * fraction)
    for name in enabled:
        under = losses(policies(length)[name])
        price[name][length] = mean_after(under, length) - mean_after(dense, length)

# %% [markdown]
# ## The table

# %%
print('| slots | ' + ' | '.join(enabled) + ' |')
print('|--:|' + '--:|' * len(enabled))
for length in price[enabled[0]]:
    print(f'| {length} | ' + ' | '.join(f'{price[name][length]:+.4f}' for name in enabled) + ' |')

# %% [markdown]
# ## The plot

# %%
matplotlib.rcParams['svg.hashsalt'] = 'keyline'  # the same figures give the same file
figure, axes = plt.subplots(figsize=(7, 4.5))
for name in enabled:
    axes.plot(list(price[name]), list(price[name].values()), marker='o', label=name)
axes.set_xscale('log', base=2)
axes.set_xlabel(f'slots per head, of a window of {WINDOW} tokens')
axes.set_ylabel('loss against dense, nats per token')
axes.set_title(f'{model.name}: what a cache budget costs')
axes.grid(alpha=0.3)
axes.legend()
figure.tight_layout()
figure.savefig(PLOT)
print(PLOT)
client.close()
