"""Starts `keyline serve` and tells its address."""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

LLAMA = Path(__file__).parents[2] / 'golden/dense/llama'


@contextlib.contextmanager
def serve(binary, model, *arguments):
    """(process, address) of a server, which is ended afterwards."""
    command = [binary, 'serve', '--model', str(model), '--address', '127.0.0.1:0', *arguments]
    with tempfile.TemporaryFile('w+') as log:
        server = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, 'OMPI_MCA_plm': 'isolated'},
        )
        try:
            ready = next((line for line in server.stdout if line.startswith('ready')), None)
            if ready is None:
                log.seek(0)
                raise AssertionError(f'{command} ended with {server.wait()}:\n{log.read()}')
            yield server, ready.split()[2]
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
