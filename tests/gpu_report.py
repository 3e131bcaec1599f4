#!/usr/bin/env python3
"""Proves a package on the GPUs of this machine and writes one JSON report.

    tests/gpu.sh [--only tests,golden,...] [--device cuda:0] [--model FILE.gguf] [--out report.json]

Parts, in this order (each has a time limit of its own and none stops the next):
  tests      the CUDA cases of the test programs, several programs at a time
  golden     tests/golden/check.py in float32: dense, and every cache policy and storage
  bf16       the same in bfloat16, where no decision hangs on a rounding: dense and last_recent
  ranks      the same float32 cases on 2 ranks: threads and mpirun, on one GPU and on two
  selftest   the same tokens on 1..3 ranks, alone and batched
  kill       a rank of two is killed, then stopped: the other ends within --end-within seconds, saying where
  real       tests/golden/check_real.py, with --model SmolLM2-135M-Instruct.Q4_1.gguf
  sanitizer  compute-sanitizer over small cases of the operations, where it is installed
  bench      keyline bench, decode and prefill
Exit code 0 if every part that ran passed. Needs Python 3.8; numpy and safetensors for the golden parts.
"""
import argparse
import concurrent.futures
import datetime
import glob
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEYLINE = os.path.join(ROOT, 'bin', 'keyline')
GOLDEN = os.path.join(ROOT, 'tests', 'golden')
START = time.monotonic()
# Seconds, for a machine with 16 cores.
LIMITS = {'tests': 420, 'golden': 240, 'bf16': 120, 'ranks': 240, 'selftest': 120, 'kill': 120,
          'real': 240, 'sanitizer': 300, 'bench': 300}
# Largest difference of a logit, where the largest logit is 3.8. float32 kernels sum in another order
# than the reference. bfloat16 weights alone, with float32 between the operations (the CPU), make 0.06
# for qwen3 and 0.45 for llama, whose random weights amplify (1.0 for llama3-rope: it says nothing then).
DENSE_BOUND, SELECTIVE_BOUND = 1e-3, 2e-3
BF16_BOUNDS = {'qwen3': 0.2, 'llama': 1.5}


def say(text):
    print(f'[{time.monotonic() - START:6.1f} s] {text}', flush=True)


class Part:
    """Runs commands within one time limit and keeps what came of them."""

    def __init__(self, name, limit):
        self.name, self.end, self.began = name, time.monotonic() + limit, time.monotonic()
        self.cases, self.figures = [], []

    def run(self, command, **options):
        """(exit code or None where time ran out, stdout, stderr, seconds); ends all it started."""
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   errors='replace', cwd=ROOT, start_new_session=True, **options)
        try:
            out, err = process.communicate(timeout=max(self.end - time.monotonic(), 0.1))
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            code = None
        return code, out, err, time.monotonic() - began

    def add(self, name, status, seconds=0.0, detail='', **more):
        """status: passed, failed or skipped."""
        case = {'name': name, 'status': status, 'seconds': round(seconds, 2), **more}
        if detail:
            case['detail'] = detail[-2000:]
        self.cases.append(case)
        if status != 'passed' or 'passed' in more:
            counts = f" {more['passed']} passed, {more['failed']} failed" if 'passed' in more else ''
            short = detail.strip().replace('\n', ' | ')[-300:] if status != 'passed' else ''
            say(f'{self.name:9} {status:7} {name}{counts} ({seconds:.1f} s) {short}')

    def add_command(self, name, command):
        code, out, err, seconds = self.run(command)
        good = code == 0
        why = 'out of time: ' if code is None else f'exit {code}: '
        self.add(name, 'passed' if good else 'failed', seconds, '' if good else why + (err or out))
        return out if good else None

    def summary(self):
        count = {status: sum(case.get(status, case['status'] == status) for case in self.cases)
                 for status in ('passed', 'failed', 'skipped')}
        return {**count, 'seconds': round(time.monotonic() - self.began, 1), 'cases': self.cases,
                'figures': self.figures}


def at_once(jobs, workers):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(*job) for job in jobs]:
            done.result()


# ---- tests ----------------------------------------------------------------------------------------
def gtest(part, program, test_filter, prefix=()):
    name = os.path.basename(program)
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, 'report.json')
        code, out, err, seconds = part.run([*prefix, program, f'--gtest_filter={test_filter}',
                                            f'--gtest_output=json:{report}'])
        try:
            with open(report) as file:
                suites = json.load(file)['testsuites']
        except (OSError, ValueError):
            suites = []
    results = [test for suite in suites for test in suite['testsuite']]
    skipped = sum(test.get('result') == 'SKIPPED' for test in results)
    failed = sum(bool(test.get('failures')) for test in results)
    passed = len(results) - skipped - failed
    counts = {'passed': passed, 'failed': failed, 'skipped': skipped}
    if code == 0 and not results:
        part.add(name, 'skipped', seconds, f'has no case {test_filter}')
    elif code == 0 and passed:
        part.add(name, 'passed', seconds, **counts)
    else:
        why = ('out of time' if code is None else f'exit {code}, {skipped} skipped')
        failures = re.findall(r'^\[  FAILED  \] .*', out, re.M)
        counts['failed'] = max(failed, 1)
        part.add(name, 'failed', seconds, f'{why}: {failures[:20]} {out[-1500:]}{err[-1500:]}', **counts)


def tests(part, a):
    programs = [p for p in sorted(glob.glob(os.path.join(ROOT, 'tests', 'bin', '*_test')))
                if re.search(a.programs, os.path.basename(p))]
    at_once([(gtest, part, program, a.filter) for program in programs], a.jobs)


# ---- golden vectors -------------------------------------------------------------------------------
def check(part, title, script, arguments):
    code, out, err, seconds = part.run([sys.executable, os.path.join(GOLDEN, script), *arguments])
    good = len(re.findall(r'^ok  ', out, re.M))
    bad = re.findall(r'^FAIL .*', out, re.M)
    worst = re.search(r'worst difference (\S+)', out)
    more = {'worst_difference': float(worst[1])} if worst else {}
    passed = code == 0 and good > 0
    why = '' if passed else '\n'.join(bad) or ('out of time' if code is None else err)
    part.add(title, 'passed' if passed else 'failed', seconds, why, passed=good,
             failed=0 if passed else max(len(bad), 1), skipped=0, **more)


def families():
    """Of the tiny models: those this version is tested with."""
    return '|'.join(os.path.basename(path) for path in glob.glob(os.path.join(GOLDEN, 'dense', '*')))


def golden_jobs(part, a, device, title, cases, keyline=None, more=()):
    for case in cases:
        yield (check, part, f'{title} {case}', 'check.py',
               [keyline or shlex.quote(KEYLINE), '--dir', a.golden, '--only', case, '--device', device,
                '--dense-tol', str(DENSE_BOUND), '--selective-tol', str(SELECTIVE_BOUND), *more])


def golden(part, a):
    cases = [f'^dense/({families()})$'] + [f'selective/{m}-{n}' for m in ('llama', 'qwen3') for n in (0, 1, 2)]
    at_once(golden_jobs(part, a, a.device, 'f32', cases), a.jobs)


def bf16(part, a):
    jobs = []
    for family, bound in BF16_BOUNDS.items():
        more = ['--dtype', 'bf16', '--dense-tol', str(bound), '--selective-tol', str(bound)]
        cases = [f'^dense/{family}(-qknorm-tied)?$', f'selective/{family}-.*-(lastrec|dense)-default']
        jobs += golden_jobs(part, a, a.device, 'bf16', cases, more=more)
    at_once(jobs, a.jobs)


def device_sets(a):
    """One GPU for all ranks, and two where there are two."""
    return [a.device] + ([','.join(a.devices[:2])] if len(a.devices) > 1 else [])


def mpirun(ranks):
    options = ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none', '-np', str(ranks)]
    own = os.path.join(ROOT, 'bin', 'mpirun')
    return [own if os.path.exists(own) else 'mpirun', *options]


def ranks(part, a):
    cases = [f'^dense/({families()})$', 'selective/(llama|qwen3)-0[2-7]']
    jobs = []
    for devices in device_sets(a):
        jobs += golden_jobs(part, a, devices, f'2 threads on {devices}', cases, more=['--ranks', '2'])
        program = shlex.join([*mpirun(2), KEYLINE])
        jobs += golden_jobs(part, a, devices, f'mpirun -np 2 on {devices}', cases, program)
        if ',' not in devices and devices != 'cpu':  # slow: NCCL is told of two hosts
            jobs += golden_jobs(part, a, devices, f'mpirun -np 2 with NCCL on {devices}', ['dense/llama$'], program,
                                more=['--extra=--transport nccl'])
    at_once(jobs, min(a.jobs, 4))


def selftest(part, a):
    for devices in device_sets(a):
        for model in ('llama', 'qwen3-qknorm-tied'):
            part.add_command(f'selftest of {model} on {devices}',
                             [KEYLINE, 'selftest', '--model', os.path.join(GOLDEN, 'dense', model),
                              '--ranks', '3', '--device', devices, '--deterministic'])


# ---- lost ranks -----------------------------------------------------------------------------------
def running(folder):
    """rank -> pid, of those that have run a few steps (runtime/transport/rank_state.h)."""
    pids = {}
    for path in glob.glob(os.path.join(folder, 'ranks', 'rank.*')):
        with open(path) as file:
            words = file.read().split()
        if len(words) > 5 and int(words[5]) > 20:
            pids[int(words[1])] = int(words[3])
    return pids


def lose_a_rank(part, a, title, flags, number):
    """A long decode on two ranks; rank 1 gets the signal once steps run."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        job = subprocess.Popen(
            [*mpirun(2), KEYLINE, 'bench', 'decode', '--model', os.path.join(GOLDEN, 'dense', 'llama'),
             '--kv-policy', 'last_recent', '--kv-cache-length', '64', '--kv-chunk', '16', '--tokens', '4000',
             '--repeat', '1000', '--batch', '1', *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=ROOT, start_new_session=True, env={**os.environ, 'KEYLINE_RANK_STATES': folder + '/ranks'})
        pids, took = {}, None
        try:
            while len(pids) < 2 and job.poll() is None and time.monotonic() - began < 40:
                time.sleep(0.05)
                pids = running(folder)
            if len(pids) == 2:
                os.kill(pids[1], number)
                lost = time.monotonic()
                job.communicate(timeout=a.end_within + 5)
                took = time.monotonic() - lost
        except subprocess.TimeoutExpired:
            pass
        for pid in [job.pid, *pids.values()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        out = job.communicate()[0]
    said = re.findall(r'^keyline: .*rank \d+ pid \d+ step \d+.*', out, re.M)
    passed = took is not None and took <= a.end_within and job.returncode != 0 and bool(said)
    why = 'it did not run' if len(pids) < 2 else f'exit {job.returncode} after {took} s'
    part.add(title, 'passed' if passed else 'failed', time.monotonic() - began,
             f"{why}: {' | '.join(said) or out[-1500:]}")
    if took is not None:
        part.figures.append({'name': title, 'value': round(took, 3), 'unit': 's'})


def kill(part, a):
    ways = [(devices, []) for devices in device_sets(a)]
    if a.device != 'cpu':
        ways.append((a.device, ['--transport', 'nccl']))
    for devices, flags in ways:
        for what, number in (('killed', signal.SIGKILL), ('stopped', signal.SIGSTOP)):
            lose_a_rank(part, a, ' '.join(['rank 1', what, 'on', devices, *flags]), ['--device', devices, *flags], number)


# ---- the rest -------------------------------------------------------------------------------------
def real(part, a):
    if not a.model:
        part.add('check_real.py', 'skipped', 0, 'no --model')
        return
    at_once([(check, part, f'{only} {dtype}', 'check_real.py',
              [shlex.quote(KEYLINE), '--model', a.model, '--name', 'smollm2-135m-instruct', '--only', only,
               '--device', a.device, '--dtype', dtype])
             for dtype, only in (('f32', 'text'), ('f32', 'greedy'), ('f32', 'policies'), ('bf16', 'text'),
                                 ('bf16', 'greedy'))], min(a.jobs, 5))


def sanitizer(part, a):
    tool = shutil.which('compute-sanitizer') or '/usr/local/cuda/bin/compute-sanitizer'
    if not os.path.exists(tool):
        part.add('compute-sanitizer', 'skipped', 0, 'not installed')
        return
    for check_tool in a.sanitizer_tools.split(','):
        prefix = [tool, '--tool', check_tool, '--error-exitcode', '9', '--launch-timeout', '0']
        at_once([(gtest, part, os.path.join(ROOT, 'tests', 'bin', program), a.sanitizer_filter or a.filter, prefix)
                 for program in ('kernel_ops_test', 'attend_test', 'cache_policy_test')
                 if os.path.exists(os.path.join(ROOT, 'tests', 'bin', program))], 3)


def bench(part, a):
    for arguments in a.benches:
        out = part.add_command(f'bench {arguments}',
                               [KEYLINE, 'bench', *arguments.split(), '--device', a.device, '--json'])
        for row in json.loads(out or '[]'):
            row['command'] = arguments
            part.figures.append(row)
            say(f"bench     {arguments}: {row['value']:.1f} {row['unit']}, {row['ratio']:.2f} of the limit "
                f"{row['limit']:.1f} ({row['limit_by']})")


PARTS = [tests, golden, bf16, ranks, selftest, kill, real, sanitizer, bench]
BENCHES = ['decode --shape smollm2-135m --dtype bf16 --batch 1,8 --repeat 3',
           'decode --shape llama-1b --dtype bf16 --batch 1,8,32 --repeat 3',
           'decode --shape llama-8b --dtype bf16 --batch 1,8,32 --repeat 3',
           'decode --shape llama-8b --dtype bf16 --batch 1,8 --depth 4096 --repeat 3',
           'decode --shape llama-8b --dtype bf16 --batch 8 --depth 4096 --kv-policy h2o --kv-cache-length 1024 '
           '--repeat 3',
           'prefill --shape llama-1b --dtype bf16 --prompt 2048 --repeat 3',
           'prefill --shape llama-8b --dtype bf16 --prompt 2048 --repeat 3']


def machine():
    query = ['nvidia-smi', '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
        rows = [line.split(', ') for line in found.stdout.strip().splitlines()]
    except (OSError, subprocess.SubprocessError):
        rows = []
    version = subprocess.run([KEYLINE, '--version'], capture_output=True, text=True, check=False)
    return {'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
            'keyline': version.stdout.strip() or version.stderr.strip()[-300:],
            'gpus': [row[0] for row in rows], 'driver': rows[0][1] if rows else None,
            'memory': [row[2] for row in rows], 'cores': os.cpu_count()}


def main():
    names = [part.__name__ for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default=','.join(names), help='parts, separated by commas')
    parser.add_argument('--device', default='cuda:0')
    parser.add_argument('--golden', default=GOLDEN, help='folder of the golden vectors')
    parser.add_argument('--model', default='', help='SmolLM2-135M-Instruct.Q4_1.gguf')
    parser.add_argument('--out', default='gpu_report.json')
    parser.add_argument('--jobs', type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)),
                        help='programs that run at a time')
    parser.add_argument('--limit', action='append', default=[], metavar='PART=SECONDS', help='another time limit')
    parser.add_argument('--filter', default='*cuda*:*Cuda*:*Nccl*', help='of the test programs\' cases')
    parser.add_argument('--programs', default='', help='tests: only programs that match this expression')
    parser.add_argument('--sanitizer-filter', default='', help='default: --filter')
    parser.add_argument('--sanitizer-tools', default='memcheck')
    parser.add_argument('--bench', dest='benches', action='append', help='arguments of keyline bench, for the usual ones')
    parser.add_argument('--end-within', type=float, default=7,
                        help='seconds after a rank was lost: 5 to notice, the rest for mpirun to end the job')
    a = parser.parse_args()
    a.benches = a.benches or BENCHES
    chosen = a.only.split(',')
    for name in chosen:
        if name not in names:
            parser.error(f'--only: no part {name}; there are {", ".join(names)}')
    limits = {**LIMITS, **{k: float(v) for k, v in (text.split('=') for text in a.limit)}}

    report = {**machine(), 'parts': {}}
    a.devices = [f'cuda:{i}' for i in range(len(report['gpus']))]
    say(f"keyline {report['keyline']} on {report['gpus'] or 'no GPU'}, driver {report['driver']}")
    for body in PARTS:
        if body.__name__ not in chosen:
            continue
        part = Part(body.__name__, limits[body.__name__])
        try:
            body(part, a)
        except Exception as error:  # the next parts still have something to say
            part.add('part', 'failed', 0, f'{type(error).__name__}: {error}')
        result = report['parts'][part.name] = part.summary()
        say(f"{part.name:9} {result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped "
            f"in {result['seconds']} s")
        with open(a.out, 'w') as file:  # after each part, should the machine go away
            json.dump(report, file, indent=1)
    failed = [name for name, part in report['parts'].items() if part['failed']]
    say(f"{'FAILED: ' + ', '.join(failed) if failed else 'all passed'}; report in {a.out}")
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
