"""The examples of rpc/python/examples, run as their users run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / 'rpc/python/examples'


def test_the_quality_notebook_measures_and_plots(address, tmp_path):
    pytest.importorskip('matplotlib')
    plot = tmp_path / 'quality.svg'
    settings = {
        'KEYLINE_ADDRESS': address,
        'KEYLINE_WINDOW': '128',
        'KEYLINE_WINDOWS': '2',
        'KEYLINE_CHUNK': '4',
        'KEYLINE_PLOT': str(plot),
        'MPLBACKEND': 'Agg',
        'MPLCONFIGDIR': str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / 'quality.py'],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split('|')[1:-1] for line in done.stdout.splitlines() if line.startswith('|')]
    assert [cell.strip() for cell in rows[0]] == ['slots', 'last_recent', 'h2o']
    assert [int(row[0]) for row in rows[2:]] == [64, 32, 16]
    prices = [float(cell) for row in rows[2:] for cell in row[1:]]
    assert all(abs(price) < 5 for price in prices)
    assert any(price != 0 for price in prices)
    assert '<svg' in plot.read_text()


def test_the_quality_notebook_says_what_is_missing(address, tmp_path):
    pytest.importorskip('matplotlib')
    text = tmp_path / 'text'
    text.write_text('words')
    done = subprocess.run(
        [sys.executable, EXAMPLES / 'quality.py'],
        env={**os.environ, 'KEYLINE_ADDRESS': address, 'KEYLINE_TEXT': str(text)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert 'tokenizer' in done.stderr
