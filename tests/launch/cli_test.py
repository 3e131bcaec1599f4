#!/usr/bin/env python3
"""The command line as scripts see it: output, files, exit codes.

    cli_test.py KEYLINE [unittest arguments]

Standard library only.
"""
import json
import math
import os
import pathlib
import re
import struct
import tempfile
import unittest
from unittest import mock

from command_line import LLAMA, run, tensors


class Score(unittest.TestCase):
    def score(self, *arguments, **kw):
        with tempfile.TemporaryDirectory() as folder:
            run('score', '--model', LLAMA, '--dtype', 'f32', '--token-ids', f'{LLAMA}/expected.safetensors',
                '--logits-out', f'{folder}/logits', '--logprobs-out', f'{folder}/logprobs',
                '--trace-out', f'{folder}/trace', *arguments, **kw)
            return (tensors(f'{folder}/logits')['logits'], tensors(f'{folder}/logprobs')['logprobs'],
                    json.loads(pathlib.Path(f'{folder}/trace').read_text()))

    def test_same_bits_on_threads_and_mpi(self):
        want = self.score()
        self.assertEqual(want[0][0], [2, 160, 320])
        self.assertEqual(want[1][0], [2, 159])
        self.assertEqual(len(want[2]['sequences']), 2)
        for ranks in (2, 3):
            self.assertEqual(self.score('--ranks', ranks), want, f'{ranks} threads')
            self.assertEqual(self.score(ranks=ranks), want, f'{ranks} processes')

    def test_selective_caches_agree_over_ranks(self):
        flags = ['--kv-policy', 'last_recent', '--kv-cache-length', 64, '--kv-chunk', 16, '--decode-tail', 24]
        want = self.score(*flags)
        last = want[2]['sequences'][0]['chunks'][-1]
        self.assertEqual(last['start'] + last['tokens'], 160)
        self.assertEqual(len(last['layers']), 3)
        self.assertEqual([len(head) for head in last['layers'][0]['kept']], [64, 64])
        self.assertEqual(self.score(*flags, ranks=2), want)

    def test_token_ids_from_json(self):
        with tempfile.NamedTemporaryFile('w', suffix='.safetensors') as ids:  # told apart by content
            json.dump([[1, 2, 3, 4]], ids)
            ids.flush()
            out = json.loads(run('score', '--model', LLAMA, '--token-ids', ids.name, '--json').stdout)
            self.assertEqual(out['sequences'][0]['token_ids'], [1, 2, 3, 4])
            self.assertEqual(len(out['sequences'][0]['logprobs']), 3)


class Weights(unittest.TestCase):
    """--weight-storage on a tiny model of random weights; weight_quality_test.py has a real one."""

    def score(self, storage, *arguments, dtype='f32', **kw):
        out = run('score', '--model', LLAMA, '--dtype', dtype, '--token-ids', f'{LLAMA}/expected.safetensors', '--json',
                  '--weight-storage', storage, *arguments, **kw).stdout
        return [sequence['logprobs'] for sequence in json.loads(out)['sequences']]

    def test_integers_are_close_to_floats(self):
        plain = self.score('plain')

        def distance(other):
            off = [abs(a - b) for x, y in zip(plain, other) for a, b in zip(x, y)]
            return sum(off) / len(off)
        # Logits of random weights have nothing that holds them, so rounding shows in full; that to bf16 is the
        # measure. Blocks of 8 bits, of weights and of activations, come to 2.9 times as much, those of 4 to 15.4.
        bf16 = distance(self.score('plain', dtype='bf16'))
        for storage, ratio in ('int8', 4), ('int4', 20):
            packed = self.score(storage)
            self.assertGreater(distance(packed), 0, storage)
            self.assertLess(distance(packed), ratio * bf16, storage)
            # The law of the CPU: the same bits on any number of ranks, alone or in a batch.
            self.assertEqual(self.score(storage, '--ranks', 3), packed)
            self.assertEqual(self.score(storage, '--lanes', 1), packed)
        # A file without packed tensors is as plain as ever.
        self.assertEqual(self.score('file'), plain)
        self.assertEqual(self.score('auto'), plain)

    def test_flag_environment_and_file(self):
        int8 = self.score('int8')
        ids = ['--token-ids', f'{LLAMA}/expected.safetensors', '--json']
        def logprobs(done):
            return [sequence['logprobs'] for sequence in json.loads(done.stdout)['sequences']]
        self.assertEqual(logprobs(run('score', '--model', LLAMA, '--dtype', 'f32', *ids,
                                      env={'KEYLINE_WEIGHT_STORAGE': 'int8'})), int8)
        with tempfile.NamedTemporaryFile('w', suffix='.pbtxt') as config:
            config.write(f'model: "{LLAMA}" dtype: "f32" weight_storage: "int8"')
            config.flush()
            self.assertEqual(logprobs(run('score', '--config', config.name, *ids)), int8)
        with tempfile.NamedTemporaryFile('w', suffix='.pbtxt') as config:
            config.write(f'model: "{LLAMA}" weight_storage: "int3"')
            config.flush()
            refused = run('score', '--config', config.name, *ids, code=3).stderr
            self.assertIn("weight_storage: unknown value 'int3'; known: auto, plain, int8, int4, file", refused)
        self.assertIn('--weight-storage', run('score', '--model', LLAMA, '--weight-storage', 'int3', *ids, code=2).stderr)

    def test_plan_counts_packed_bytes(self):
        def weights(storage):
            out = run('plan', '--model', LLAMA, '--dtype', 'bf16', '--weight-storage', storage, '--json').stdout
            return sum(stage['weight_bytes'] for stage in json.loads(out)['stages'])
        self.assertLess(weights('int4'), weights('int8'))
        self.assertLess(weights('int8'), 0.65 * weights('plain'))
        report = run('plan', '--model', LLAMA, '--weight-storage', 'int8').stdout
        self.assertIn('(int8)', report.splitlines()[0])

    def test_selftest(self):
        for storage in 'int8', 'int4':
            run('selftest', '--model', LLAMA, '--ranks', 3, '--weight-storage', storage)


class Eval(unittest.TestCase):
    def eval(self, *arguments, folder, **kw):
        run('eval', '--model', LLAMA, '--dtype', 'f32', '--token-ids', f'{LLAMA}/expected.safetensors', '--window', 80,
            '--kv-chunk', 8, '--out', f'{folder}/table', '--json-out', f'{folder}/json', '--svg-out', f'{folder}/svg',
            '--scratch', folder, *arguments, **kw)
        return {row['name']: row for row in json.loads(pathlib.Path(f'{folder}/json').read_text())}

    def test_prices(self):
        with tempfile.TemporaryDirectory() as folder:
            rows = self.eval('--policies', 'dense,last_recent,h2o_vnorm+norm,qh2o', '--storages', 'plain,int8',
                             '--fractions', '1,1/2', '--kv-sinks', 4, folder=folder)
            self.assertEqual(len(rows), 2 + 4 + 4 + 2)
            dense = rows['eval/dense/plain/80']
            self.assertEqual((dense['windows'], dense['tokens']), (4, 4 * 79))
            self.assertEqual((dense['delta_nll'], dense['kl']), (0, 0))
            # A cache that never fills is the dense one, whatever its policy.
            for policy in 'last_recent', 'h2o_vnorm+norm':
                full = rows[f'eval/{policy}/plain/80']
                self.assertLess(abs(full['delta_nll']), 1e-6)
                self.assertLess(full['kl'], 1e-6)
                self.assertEqual(full['evicting'], {'tokens': 0})
                half = rows[f'eval/{policy}/plain/40']
                self.assertEqual(half['evicting']['tokens'], 4 * 39)
                self.assertGreater(half['kl'], 1e-5)
                # Nothing is lost before the first eviction.
                self.assertAlmostEqual(half['evicting']['kl'] * 39 / 79, half['kl'], 6)
            int8 = rows['eval/dense/int8/80']
            self.assertGreater(int8['kl'], 0)
            self.assertLess(int8['kl'], 1e-3)
            self.assertLess(int8['kl'], rows['eval/last_recent/plain/40']['kl'])
            self.assertLess(int8['lane_bytes'], dense['lane_bytes'])
            table = pathlib.Path(f'{folder}/table').read_text()
            self.assertEqual(table.count('\n| '), 1 + len(rows))
            self.assertIn('</svg>', pathlib.Path(f'{folder}/svg').read_text())
            self.assertEqual(sorted(os.listdir(folder)), ['json', 'svg', 'table'], 'no logits stay behind')

    def test_agrees_with_score_and_over_ranks(self):
        flags = ['--policies', 'h2o', '--lengths', 40, '--windows', 3]
        with tempfile.TemporaryDirectory() as folder:
            rows = self.eval(*flags, folder=folder)
            self.assertEqual(self.eval(*flags, '--ranks', 3, '--lanes', 2, folder=folder), rows)
            ids = tensors(f'{LLAMA}/expected.safetensors')['token_ids'][1]
            kind = 'i' if len(ids) == 2 * 160 * 4 else 'q'
            ids = struct.unpack(f'<320{kind}', ids)
            pathlib.Path(f'{folder}/ids').write_text(json.dumps([ids[:80], ids[80:160], ids[160:240]]))
            out = json.loads(run('score', '--model', LLAMA, '--dtype', 'f32', '--token-ids', f'{folder}/ids',
                                 '--kv-policy', 'h2o', '--kv-cache-length', 40, '--kv-grace', 10, '--kv-chunk', 8,
                                 '--json').stdout)
            self.assertAlmostEqual(rows['eval/h2o/plain/40']['nll'], out['mean_nll'], 9)

    def test_refusals(self):
        with tempfile.TemporaryDirectory() as folder:
            def refused(*arguments, code=3):
                ids = ['--token-ids', f'{LLAMA}/expected.safetensors']
                return run('eval', '--model', LLAMA, *ids, *arguments, '--scratch', folder, code=code).stderr
            self.assertIn('--window', refused())
            self.assertIn('chunk_size', refused('--window', 80, '--kv-chunk', 64, '--lengths', 40))
            self.assertIn('qh2o', refused('--window', 80, '--policies', 'qh2o', '--storages', 'plain'))
            self.assertIn('int4', refused('--window', 80, '--storages', 'int2', code=2))
            self.assertIn('--scratch', run('eval', '--model', LLAMA, '--token-ids', f'{LLAMA}/expected.safetensors',
                                           '--window', 80, '--scratch', f'{folder}/none', code=3).stderr)


class ExitCodes(unittest.TestCase):
    def test_usage(self):
        done = run('score', '--modell', LLAMA, code=2)
        self.assertIn('--kv-policy', done.stderr, 'unknown flags list the known ones')
        self.assertIn('last_recent', run('score', '--kv-policy', 'lru', code=2).stderr)
        run(code=2)

    def test_bad_input(self):
        self.assertIn('no/such', run('score', '--model', 'no/such', '--token-ids', 'x', code=3).stderr)
        with tempfile.TemporaryDirectory() as folder:
            for name in os.listdir(LLAMA):
                os.symlink(f'{LLAMA}/{name}', f'{folder}/{name}')
            os.remove(f'{folder}/model.safetensors')
            data = pathlib.Path(f'{LLAMA}/model.safetensors').read_bytes()
            pathlib.Path(f'{folder}/model.safetensors').write_bytes(data[:-100])
            done = run('score', '--model', folder, '--token-ids', f'{LLAMA}/expected.safetensors', code=3)
            self.assertIn('model.safetensors', done.stderr)

    def test_resources(self):
        done = run('plan', '--model', LLAMA, '--device-memory', '100KiB', code=4)
        self.assertIn('--device-memory', done.stderr)
        self.assertIn('rank', run('plan', '--model', LLAMA, '--ranks', 3).stdout)

    def test_offload(self):
        """A budget that all commands keep to, from two slots on; below, the number that would do."""
        flags = ['--model', LLAMA, '--kv-cache-length', 64, '--kv-chunk', 16, '--lanes', 2]
        refused = run('plan', *flags, '--device-memory', '100KiB', code=4).stderr
        least = re.search(r'; (\d+)MiB would do', refused)
        self.assertTrue(least, refused)
        out = run('plan', *flags, '--offload', 'all', '--device-memory', f'{least[1]}MiB').stdout
        self.assertRegex(out, r'offload +0 of 3 layers stay, 3 stream through [23] slots: .* GB/s')
        self.assertRegex(out, r'about [\d.e+]+ tok/s for 1 sequence, [\d.e+]+ for 2 together')
        plan = json.loads(run('plan', *flags, '--offload', 'all', '--json').stdout)
        self.assertEqual(plan['stages'][0]['streamed_layers'], [0, 1, 2])
        self.assertEqual(plan['offload']['streamed_layers'], 3)
        self.assertGreater(plan['offload']['link_bytes_per_second'], 0)
        self.assertGreater(plan['offload']['tokens_per_second']['one_sequence'], 0)
        self.assertIn('all layers stay', run('plan', *flags).stdout)
        self.assertIn('--device-memory', run('plan', *flags, '--device-memory', 'much', code=3).stderr)
        for command in (['score', '--token-ids', f'{LLAMA}/expected.safetensors'],
                        ['bench', 'prefill', '--prompt', 30, '--repeat', 1]):
            self.assertIn('would do', run(*command, '--model', LLAMA, '--device-memory', '100KiB', code=4).stderr)
        score = ['score', '--model', LLAMA, '--token-ids', f'{LLAMA}/expected.safetensors', '--json']
        whole = run(*score).stdout
        self.assertEqual(run(*score, '--offload', 'all', '--host-memory', '1KiB').stdout, whole)
        self.assertEqual(run(*score, '--offload', 'all', '--ranks', 2).stdout, whole)

    def test_more_ranks_than_layers(self):
        self.assertIn('1 to 3 ranks would do', run('plan', '--model', LLAMA, '--ranks', 4, code=3).stderr)

    def test_environment_and_deployment_file(self):
        self.assertEqual(len(json.loads(run('plan', '--json', env={'KEYLINE_MODEL': LLAMA, 'KEYLINE_RANKS': '2'})
                                        .stdout)['stages']), 2)
        with tempfile.NamedTemporaryFile('w', suffix='.pbtxt') as file:
            file.write(f'model: "{LLAMA}"\nranks: 3\nlanes: 2\n')
            file.flush()
            plan = json.loads(run('plan', '--config', file.name, '--json').stdout)
            self.assertEqual((len(plan['stages']), plan['lanes']), (3, 2))
            plan = json.loads(run('plan', '--config', file.name, '--ranks', 2, '--json').stdout)
            self.assertEqual(len(plan['stages']), 2, 'a flag overrides the file')
            file.write('ranksss: 3\n')
            file.flush()
            self.assertIn(':4:', run('plan', '--config', file.name, code=3).stderr)


class Selftest(unittest.TestCase):
    def test_all_runs_agree(self):
        for policy in ('dense', 'last_recent'):
            out = run('selftest', '--model', LLAMA, '--ranks', 3, '--max-new-tokens', 12, '--kv-policy', policy,
                      *(['--kv-cache-length', 32, '--kv-chunk', 8] if policy != 'dense' else [])).stdout
            self.assertIn('all runs agree', out)
            self.assertNotIn('FAIL', out)


class Bench(unittest.TestCase):
    """Shape and arithmetic of the tables; how fast a test machine is says nothing."""

    def rows(self, *arguments, names, processes=0, **fields):
        rows = json.loads(run('bench', *arguments, '--repeat', 1, '--json', ranks=processes).stdout)
        self.assertEqual([row['name'] for row in rows], names)
        for row in rows:
            for field in ('value', 'limit', 'ratio'):
                self.assertGreater(row[field], 0, row)
                self.assertTrue(math.isfinite(row[field]), row)
            self.assertAlmostEqual(row['ratio'], row['value'] / row['limit'])
            self.assertTrue(row['unit'] and row['limit_by'] and row['device'] and row['date'], row)
            self.assertEqual(row, {**row, **fields})
        return rows

    def test_decode(self):
        model = ['--model', LLAMA, '--dtype', 'f32', '--batch', '1,2', '--depth', '0,20', '--tokens', 4]
        names = [f'decode B={b} depth {d}' for b in (1, 2) for d in (0, 20)]
        rows = self.rows('decode', *model, names=names, dtype='f32', policy='dense', storage='plain', ranks=1)
        for row in rows:
            self.assertGreater(row['host_us_per_step'], 0)
        # More sequences and deeper caches are more to read.
        self.assertLess(rows[0]['bytes'], rows[1]['bytes'])
        self.assertLess(rows[1]['bytes'], rows[3]['bytes'])
        self.rows('decode', *model, '--ranks', 2, names=names, ranks=2)

    def test_prefill(self):
        flags = ['--prompt', 48, '--kv-policy', 'h2o', '--kv-cache-length', 32, '--kv-chunk', 8]
        row, = self.rows('prefill', '--model', LLAMA, *flags, names=['prefill 48'], policy='h2o', ranks=1)
        dense, = self.rows('prefill', '--model', LLAMA, '--prompt', 48, names=['prefill 48'], policy='dense')
        self.assertLess(row['operations'], dense['operations'])

    def test_attention(self):
        names = [f'{p} {s} B=2 S=64{q}' for s in ('plain', 'k8v4') for q in ('', ' q=8')
                 for p in ('dense', 'last_recent', 'h2o')]
        rows = self.rows('attention', '--model', LLAMA, '--batch', 2, '--depth', 64, '--chunk', '1,8', '--policies',
                         'dense,last_recent,h2o', '--storages', 'plain,k8v4', names=names, batch=2, depth=64)
        self.assertEqual({row['unit'] for row in rows}, {'GB/s', 'GFLOP/s'})
        for row in rows:
            work = row['bytes'] if row['unit'] == 'GB/s' else row['operations']
            self.assertAlmostEqual(row['value'], work / row['us'] * 1e-3, places=3)
        self.assertLess(rows[7]['bytes'], rows[1]['bytes'] / 2, 'k8v4 is smaller than plain')
        refused = run('bench', 'attention', '--model', LLAMA, '--depth', 16, '--chunk', 99, '--kv-policy', 'h2o', code=3)
        self.assertIn('--chunk: 99', refused.stderr)

    def test_offload(self):
        flags = ['offload', '--model', LLAMA, '--dtype', 'f32', '--batch', '1,2', '--tokens', 4, '--prompt', 40,
                 '--kv-chunk', 16, '--resident', '0,1']
        work = ['decode B=1', 'decode B=2', 'prefill 40']
        rows = json.loads(run('bench', *flags, '--repeat', 1, '--json').stdout)
        self.assertEqual([re.split(',', row['name'])[0] for row in rows], 2 * work)
        self.assertEqual([row['resident_layers'] for row in rows[::3]], [3, 0])
        for row in rows:
            self.assertGreater(row['value'], 0)
            self.assertGreater(row['link_bandwidth'], 0)
            self.assertGreater(row['peak_device_bytes'], 0)
        self.assertEqual(rows[-1]['sweeps'], 1, 'a prompt takes one sweep of the weights')
        budget = rows[-1]['peak_device_bytes'] + 1000
        for row in json.loads(run('bench', *flags, '--repeat', 1, '--device-memory', budget, '--json').stdout):
            self.assertLessEqual(row['peak_device_bytes'], budget)

    def test_gemv(self):
        rows = self.rows('gemv', '--model', LLAMA, '--batch', '1,3', names=mock.ANY)
        self.assertEqual([row['name'].split()[0] for row in rows[::2]], ['qkv', 'o', 'gate_up', 'down', 'head'])
        self.assertEqual([row['batch'] for row in rows], [1, 3] * 5)

    def test_hop(self):
        names = [f'{what} {kib} KiB' for kib in (8, 256, 4096, 16384) for what in ('ping-pong', 'stream')]
        self.rows('hop', names=names, transport='local')
        self.rows('hop', names=names, processes=2, transport='mpi')
        refused = run('bench', 'hop', '--ranks', 3, code=3)
        self.assertIn('between 2 ranks, not 3', refused.stderr)

    def test_pipeline(self):
        names = ['decode B=2 depth 0', 'decode B=4 depth 0', 'prefill 48']  # measured on two ranks
        for b in (1, 2):
            names += [f'decode N=1, 1 x B={b}', f'decode N=2, 2 x B={b}', f'decode N=2, 2 x B={b} measured',
                      f'decode N=2, 3 x B={b}', f'decode N=3, 3 x B={b}', f'decode N=3, 4 x B={b}']
        names += [f'prompt 48 N={n}' for n in ('1', '2', '2 measured', '2 of the ideal', '3')]
        flags = ['--model', LLAMA, '--tokens', 8, '--prompt', 48, '--ranks', 2]
        rows = self.rows('pipeline', *flags, '--batch', '1,2', '--simulate', '3,64', names=names)
        for row in rows:
            if row['name'].endswith('measured'):
                predicted, = [other['value'] for other in rows if row['name'] == other['name'] + ' measured']
                self.assertEqual(row['limit'], predicted)
                self.assertAlmostEqual(row['error'], predicted / row['value'] - 1)
            if row['name'].startswith('prompt') and 'seconds' in row:
                self.assertLessEqual(row['ideal_seconds'], row['seconds'])
        two, measured, ideal = rows[-4:-1]
        self.assertEqual(ideal['value'], measured['value'])
        self.assertAlmostEqual(ideal['limit'], 48 / two['ideal_seconds'])
        self.assertAlmostEqual(ideal['of_ideal'], ideal['value'] / ideal['limit'])
        self.assertGreater(two['hop_receive_us'], 0)
        self.assertLessEqual(two['hop_send_us'], two['hop_us'])
        self.assertIn('without mpirun', run('bench', 'pipeline', '--model', LLAMA, ranks=2, code=3).stderr)
        self.assertIn('--depth', run('bench', 'pipeline', *flags, '--depth', '0,8', code=3).stderr)

    def test_device(self):
        names = ['read 16 MiB', 'read 64 MiB', 'read 256 MiB', 'read', 'multiply f32', 'multiply bf16']
        for row in self.rows('device', names=names):
            self.assertLessEqual(row['ratio'], 1)


if __name__ == '__main__':
    unittest.main()
