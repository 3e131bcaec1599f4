#!/usr/bin/env python3
"""The command line as scripts see it: output, files, exit codes, ranks as threads and under mpirun, a server.

    cli_test.py KEYLINE [unittest arguments]

Standard library only. Models: the tiny ones of tests/golden/dense.
"""
import json
import math
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

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

    def score(self, storage, *arguments, **kw):
        out = run('score', '--model', LLAMA, '--dtype', 'f32', '--token-ids', f'{LLAMA}/expected.safetensors', '--json',
                  '--weight-storage', storage, *arguments, **kw).stdout
        return [sequence['logprobs'] for sequence in json.loads(out)['sequences']]

    def test_integers_are_close_to_floats(self):
        plain = self.score('plain')
        # Logits of random weights have nothing that holds them: the rounding of 3 layers shows in full.
        for storage, mean_bound in ('int8', 0.01), ('int4', 0.1):
            packed = self.score(storage)
            off = [abs(a - b) for x, y in zip(plain, packed) for a, b in zip(x, y)]
            self.assertGreater(max(off), 0, storage)
            self.assertLess(sum(off) / len(off), mean_bound, storage)
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


class Sessions(unittest.TestCase):
    def test_a_conversation_from_the_command_line(self):
        with tempfile.TemporaryDirectory() as folder:
            config = pathlib.Path(folder, 'x.pbtxt')
            config.write_text(f'model: "{LLAMA}" lanes: 1 cache {{ policy: "h2o" cache_length: 64 chunk: 16 }}\n'
                              f'server {{ address: "127.0.0.1:0" session_dir: "{folder}" max_sessions: 3 }}')
            server = subprocess.Popen([KEYLINE, 'serve', '--config', config], stdout=subprocess.PIPE, text=True,
                                      env=ENVIRONMENT)
            try:
                address = next(line for line in server.stdout if line.startswith('ready')).split()[2]

                def client(*args, code=0):
                    return run('client', *args, '--server', address, code=code)

                def say(session, ids):
                    answer = json.loads(client('generate', '--session', session, '--token-ids', ids, '--json',
                                               '--ignore-eos', '--max-new-tokens', 5).stdout)
                    return answer['output']['token_ids'], answer['finish']['usage']['cached_prompt_tokens']

                first = client('sessions', '--create').stdout.strip()
                self.assertEqual(say(first, '5,6,7')[1], 0)
                fork = client('sessions', '--fork', first).stdout.strip()
                saved = client('sessions', '--save', first).stdout.strip()
                self.assertTrue(pathlib.Path(folder, f'{saved}.kvsession').exists())
                restored = client('sessions', '--restore', saved).stdout.strip()
                said = say(first, '9')
                self.assertEqual(said[1], 7)
                self.assertEqual((say(fork, '9'), say(restored, '9')), (said, said))
                self.assertIn(saved, client('sessions').stdout)
                client('sessions', '--delete-saved', saved)
                client('sessions', '--create')  # a fourth: the least recently used one goes
                self.assertIn('expired', client('generate', '--session', first, '--token-ids', '1', code=3).stderr)
                self.assertIn('--fork', client('sessions', '--create', '--fork', fork, code=3).stderr)
            finally:
                server.terminate()
                self.assertEqual(server.wait(30), 0)
                server.stdout.close()

    def test_limits_are_checked_before_weights_are_loaded(self):
        self.assertIn('--session-dir', run('serve', '--model', LLAMA, '--session-dir', 'no/such', code=3).stderr)
        self.assertIn('--prefix-memory', run('serve', '--model', LLAMA, '--prefix-memory', 'much', code=3).stderr)
        self.assertIn('--session-memory',
                      run('serve', '--model', LLAMA, env={'KEYLINE_SESSION_MEMORY': '1 cup'}, code=3).stderr)
        self.assertIn('--max-sessions', run('serve', '--max-sessions', -1, code=2).stderr)


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


class Pipeline(unittest.TestCase):
    def test_pieces_of_a_long_prompt_overlap(self):
        """A long prompt is on several stages at once, and its log-probabilities are those of one piece."""
        with tempfile.TemporaryDirectory() as folder:
            ids = [(i * 7919) % 320 for i in range(2000)]
            pathlib.Path(f'{folder}/ids').write_text(json.dumps([ids]))
            flags = ['score', '--model', LLAMA, '--token-ids', f'{folder}/ids', '--kv-chunk', 60]
            run(*flags, '--max-pass-tokens', 2000, '--logprobs-out', f'{folder}/one')
            run(*flags, '--max-pass-tokens', 100, '--ranks', 3, '--logprobs-out', f'{folder}/many',
                '--timing-out', f'{folder}/timing')
            self.assertEqual(tensors(f'{folder}/one'), tensors(f'{folder}/many'))
            timing = json.loads(pathlib.Path(f'{folder}/timing').read_text())
            self.assertEqual(len({row['step'] for row in timing}), 20)
            begin = {(row['step'], row['rank']): row['begin_ms'] for row in timing}
            end = {(row['step'], row['rank']): row['end_ms'] for row in timing}
            early = sum(begin[step + 1, 0] < end[step, 2] for step in range(1, 20))
            self.assertGreater(early, 10, 'rank 0 begins a piece while the one before is still on its way')


class Serve(unittest.TestCase):
    def serve(self, *arguments, ranks=0):
        command = [*(MPIRUN + ['-np', str(ranks)] if ranks else []), KEYLINE, 'serve', '--model', LLAMA, '--lanes', '2',
                   '--kv-cache-length', '128', '--address', '127.0.0.1:0', *arguments]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)
        screen = []
        for line in server.stdout:
            screen.append(line)
            if line.startswith('ready'):
                return server, line.split()[2], ''.join(screen)
        raise AssertionError('the server did not start:\n' + ''.join(screen))

    def generate(self, address):
        return run('client', 'generate', '--server', address, '--token-ids', '5,6,7', '--max-new-tokens', 9, '--json')

    def check(self, ranks):
        server, address, screen = self.serve(ranks=ranks)
        try:
            for word in ('model', 'cache', 'plan', 'capacity'):
                self.assertIn(f'\n{word}', '\n' + screen)
            run('client', 'health', '--server', address)
            first = json.loads(self.generate(address).stdout)
            self.assertEqual(len(first['output']['token_ids']), 9)
            self.assertEqual(json.loads(self.generate(address).stdout)['output'], first['output'])
            placement = json.loads(run('client', 'placement', '--server', address, '--json').stdout)
            self.assertEqual(len(placement['stages']), max(ranks, 1))
            stats = json.loads(run('client', 'stats', '--server', address).stdout)
            self.assertEqual(stats['load']['running'], 0)
            run('client', 'drain', '--server', address)
            self.assertEqual(server.wait(30), 0)
        finally:
            server.kill()
            server.stdout.close()
            server.wait()
        return first['output']['token_ids']

    def test_one_process_and_mpirun_say_the_same(self):
        if 'not in this build' in run('--help').stdout:
            self.skipTest('built without gRPC')
        self.assertEqual(self.check(0), self.check(2))

    def test_address_in_use_and_signal(self):
        if 'not in this build' in run('--help').stdout:
            self.skipTest('built without gRPC')
        server, address, _ = self.serve()
        try:
            self.assertIn(address, run('serve', '--model', LLAMA, '--lanes', 1, '--kv-cache-length', 64, '--address',
                                       address, code=76).stderr)
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(30), 0, 'SIGTERM drains')
        finally:
            server.kill()
            server.stdout.close()
            server.wait()


class LostRank(unittest.TestCase):
    """A rank of two is killed, or stops: the job ends in seconds and says where it was."""

    def lose(self, number):
        with tempfile.TemporaryDirectory() as folder:
            job = subprocess.Popen(
                [*MPIRUN, '-np', '2', KEYLINE, 'bench', 'decode', '--model', LLAMA, '--kv-policy', 'last_recent',
                 '--kv-cache-length', '64', '--kv-chunk', '16', '--batch', '1', '--tokens', '4000', '--repeat', '1000'],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**ENVIRONMENT, 'KEYLINE_RANK_STATES': folder + '/ranks'})
            pids = {}
            try:
                for _ in range(3000):  # until steps run
                    lines = [path.read_text().split() for path in pathlib.Path(folder).glob('ranks/rank.*')]
                    pids = {int(words[1]): int(words[3]) for words in lines if len(words) > 5 and int(words[5]) > 20}
                    if len(pids) == 2 or job.poll() is not None:
                        break
                    time.sleep(0.02)
                self.assertEqual(set(pids), {0, 1}, 'the job does not run')
                os.kill(pids[1], number)
                begin = time.monotonic()
                output, _ = job.communicate(timeout=60)
                return job.returncode, output, pids, time.monotonic() - begin
            finally:
                job.kill()
                for pid in pids.values():
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                job.communicate()

    def test_killed(self):
        code, output, pids, took = self.lose(signal.SIGKILL)
        self.assertNotEqual(code, 0)
        self.assertLess(took, 5, output)
        self.assertRegex(output, f'keyline: rank 0 pid {pids[0]} step [0-9]+ layer [0-9-]+ .*: ended by SIGTERM')
        self.assertRegex(output, f'keyline: gone: rank 1 pid {pids[1]} step [0-9]+ layer [0-9-]+ [a-z]+')

    def test_stopped(self):
        code, output, pids, took = self.lose(signal.SIGSTOP)
        self.assertEqual(code, 75, output)
        said = re.search(f'keyline: rank 0 pid {pids[0]} step ([0-9]+) layer [0-9-]+ receive the result of step '
                         r'\1 from rank 1: rank 0: rank 1 did not send the result of step \1 within ([0-9.]+)s', output)
        self.assertIsNotNone(said, output)
        # 5 s, or more where the machine was so busy that a tiny step took a quarter of a second.
        self.assertLess(took, float(said[2]) + 4, output)


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
        names += [f'prompt 48 N={n}' for n in ('1', '2', '2 measured', '3')]
        flags = ['--model', LLAMA, '--tokens', 8, '--prompt', 48, '--ranks', 2]
        rows = self.rows('pipeline', *flags, '--batch', '1,2', '--simulate', '3,64', names=names)
        for row in rows:
            if row['name'].endswith('measured'):
                predicted, = [other['value'] for other in rows if row['name'] == other['name'] + ' measured']
                self.assertEqual(row['limit'], predicted)
                self.assertAlmostEqual(row['error'], predicted / row['value'] - 1)
        self.assertIn('without mpirun', run('bench', 'pipeline', '--model', LLAMA, ranks=2, code=3).stderr)
        self.assertIn('--depth', run('bench', 'pipeline', *flags, '--depth', '0,8', code=3).stderr)

    def test_device(self):
        names = ['read 16 MiB', 'read 64 MiB', 'read 256 MiB', 'read', 'multiply f32', 'multiply bf16']
        for row in self.rows('device', names=names):
            self.assertLessEqual(row['ratio'], 1)


if __name__ == '__main__':
    unittest.main()
