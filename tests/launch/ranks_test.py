#!/usr/bin/env python3
"""Several ranks, as threads and under mpirun, and a server, as scripts see them.

    ranks_test.py KEYLINE [unittest arguments]

Standard library only.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import unittest

from command_line import ENVIRONMENT, KEYLINE, LLAMA, MPIRUN, run, tensors


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


if __name__ == '__main__':
    unittest.main()
