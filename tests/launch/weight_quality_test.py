#!/usr/bin/env python3
"""What packed weights cost on a real model: SmolLM2-135M-Instruct, whose file is q4_1 with a q8_0 embedding.

    weight_quality_test.py KEYLINE

The mean negative log-likelihood of an English text under each --weight-storage, beside that of the file dequantised
to float32. `file` has the file's very numbers: what it adds is the rounding of activations to int8. `int8` rounds the
weights once more, `int4` once more to 4 bits.

Standard library only. Exit 77: skipped, the model cannot be fetched.
"""
import json
import pathlib
import subprocess
import sys
import unittest

KEYLINE = sys.argv.pop(1)
ROOT = pathlib.Path(__file__).parent.parent.parent


class WeightQuality(unittest.TestCase):
    def score(self, *flags):
        command = [KEYLINE, 'score', '--model', MODEL, '--file', ROOT / 'CONTRIBUTING.md', '--json', *flags]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)['sequences'][0]['logprobs']

    def test_losses(self):
        exact = self.score('--dtype', 'f32', '--weight-storage', 'plain')
        for storage, bound in BOUNDS.items():
            packed = self.score('--dtype', 'f32', '--weight-storage', storage)
            loss = (sum(exact) - sum(packed)) / len(exact)
            apart = sum(abs(a - b) for a, b in zip(exact, packed)) / len(exact)
            print(f'{storage:6} {len(exact)} tokens  loss {loss:+.4f}  apart {apart:.4f}', flush=True)
            self.assertLess(abs(loss), bound[0], storage)
            self.assertLess(apart, bound[1], storage)
        # What a .gguf file runs as unless told otherwise.
        auto = self.score()
        self.assertLess(abs(sum(exact) - sum(auto)) / len(exact), BOUNDS['file'][0])


# Storage: (change of the mean loss, mean change of a token's), in nats.
BOUNDS = {'file': (0.01, 0.1), 'int8': (0.01, 0.1), 'int4': (0.1, 0.3)}

if __name__ == '__main__':
    fetched = subprocess.run([ROOT / 'launch/fetch_smollm2.sh'], capture_output=True, text=True)
    if fetched.returncode != 0:
        print(f'skipped: {fetched.stderr.strip()}')
        sys.exit(77)
    MODEL = str(ROOT / fetched.stdout.strip())
    unittest.main()
