"""Runs the program for the tests of this folder: KEYLINE is the first argument of the test's own command line.

Models: the tiny ones of tests/golden/dense.
"""
import json
import os
import pathlib
import struct
import subprocess
import sys

KEYLINE = sys.argv.pop(1)
GOLDEN = pathlib.Path(__file__).parent.parent / 'golden'
LLAMA = str(GOLDEN / 'dense' / 'llama')
MPIRUN = ['mpirun', '--allow-run-as-root', '--oversubscribe', '--bind-to', 'none']
ENVIRONMENT = {**os.environ, 'OMPI_MCA_plm': 'isolated',
               # Open MPI leaks at exit; reports of our own leaks come from the tests without it.
               'ASAN_OPTIONS': 'detect_leaks=0:' + os.environ.get('ASAN_OPTIONS', '')}


def run(*arguments, ranks=0, code=0, env=None):
    command = [*(MPIRUN + ['-np', str(ranks)] if ranks else []), KEYLINE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                          env={**ENVIRONMENT, **(env or {})})
    if done.returncode != code:
        raise AssertionError(f'{command}: exit {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}')
    return done


def tensors(path):
    """name -> (shape, raw bytes) of a safetensors file."""
    data = pathlib.Path(path).read_bytes()
    size, = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + size])
    return {name: (entry['shape'], data[8 + size + entry['data_offsets'][0]:8 + size + entry['data_offsets'][1]])
            for name, entry in header.items() if name != '__metadata__'}


def smollm2():
    """The path of SmolLM2-135M-Instruct, fetched where it is not there. Ends with 77, skipped, where it cannot be."""
    root = pathlib.Path(__file__).parent.parent.parent
    fetched = subprocess.run([root / 'launch/fetch_smollm2.sh'], capture_output=True, text=True)
    if fetched.returncode != 0:
        print(f'skipped: {fetched.stderr.strip()}')
        sys.exit(77)
    return str(root / fetched.stdout.strip())
