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
  scale      all GPUs together: equality with one, speed of 1, 2, 4, ... of them, any rank killed (gpu_scale.py)
  real       tests/golden/check_real.py, with --model SmolLM2-135M-Instruct.Q4_1.gguf
  sanitizer  compute-sanitizer over small cases of the operations, where it is installed
  bench      keyline bench, decode and prefill
  offload    keyline bench offload: all layers stream, half of them, none; and a budget is kept to
Exit code 0 if every part that ran passed. Needs Python 3.8; numpy and safetensors for the golden parts.
"""
import argparse
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

from gpu_part import GOLDEN, KEYLINE, ROOT, Part, at_once, check, families, golden_jobs, lose_a_rank, mpirun, say
from gpu_scale import ITEMS, scale

# Seconds, for a machine with 16 cores.
LIMITS = {'tests': 420, 'golden': 240, 'bf16': 120, 'ranks': 240, 'selftest': 120, 'kill': 120, 'scale': 600,
          'real': 240, 'sanitizer': 300, 'bench': 300, 'offload': 420}
BF16_BOUNDS = {'qwen3': 0.2, 'llama': 1.5}


# ---- tests ----------------------------------------------------------------------------------------
def gtest(part, program, test_filter, prefix=(), shard=(0, 1)):
    """`shard`: which of how many shares of the cases."""
    name = os.path.basename(program) + (f' {shard[0] + 1} of {shard[1]}' if shard[1] > 1 else '')
    env = {**os.environ, 'GTEST_SHARD_INDEX': str(shard[0]), 'GTEST_TOTAL_SHARDS': str(shard[1])}
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, 'report.json')
        code, out, err, seconds = part.run([*prefix, program, f'--gtest_filter={test_filter}',
                                            f'--gtest_output=json:{report}'], env=env)
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
    if not results and (code == 0 or 'Running 0 tests' in out):
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
            for dtype in ('f32', 'bf16'):
                part.add_command(f'selftest of {model} in {dtype} on {devices}',
                                 [KEYLINE, 'selftest', '--model', os.path.join(GOLDEN, 'dense', model),
                                  '--ranks', '3', '--device', devices, '--dtype', dtype])


# ---- lost ranks -----------------------------------------------------------------------------------
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
        if check_tool == 'racecheck':
            # What a warp's lanes copy (cp.async) they wait for, each its own, before they meet at __syncwarp:
            # racecheck takes no note of that and warns of every read.
            prefix += ['--racecheck-memcpy-async', 'no']
        at_once([(gtest, part, os.path.join(ROOT, 'tests', 'bin', program), a.sanitizer_filter or a.filter,
                  prefix, (shard, a.jobs))
                 for program in ('kernel_ops_test', 'attend_test', 'cache_policy_test')
                 if os.path.exists(os.path.join(ROOT, 'tests', 'bin', program)) for shard in range(a.jobs)], a.jobs)


def bench(part, a):
    for arguments in a.benches:
        part.add_bench(f'bench {arguments}', [KEYLINE, 'bench', *arguments.split(), '--device', a.device])


def offload(part, a):
    budget = 8 << 30
    for flags in ['', f' --device-memory {budget}']:
        for arguments in OFFLOADS:
            command = [KEYLINE, 'bench', *(arguments + flags).split(), '--device', a.device]
            rows = part.add_bench(f'bench {arguments}{flags}', command)
            over = [row['peak_device_bytes'] for row in rows if flags and row['peak_device_bytes'] > budget]
            part.add(f'{arguments}: memory is kept to', 'passed' if rows and not over else 'failed', 0, f'peaks: {over}')
    model = os.path.join(GOLDEN, 'dense', 'llama')
    score = [KEYLINE, 'score', '--model', model, '--token-ids', f'{model}/expected.safetensors', '--device', a.device,
             '--json']
    whole = part.add_command('score', score)
    for flags in (['--offload', 'all'], ['--offload', 'all', '--host-memory', '1KiB']):
        name = f"score {' '.join(flags)}"
        same = part.add_command(name, score + flags) == whole
        part.add(f'{name}: the same numbers', 'passed' if same else 'failed', 0)


PARTS = [tests, golden, bf16, ranks, selftest, kill, scale, real, sanitizer, bench, offload]
OFFLOADS = ['offload --shape llama-8b --dtype bf16 --batch 1,8,32 --tokens 12 --prompt 256 --repeat 3',
            'offload --shape llama-8b --dtype bf16 --batch 1 --tokens 12 --prompt 16384 --max-pass-tokens 2176 '
            '--kv-chunk 2048 --repeat 3']
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
    parser.add_argument('--devices', default='', help='of the part scale; default: all GPUs')
    parser.add_argument('--scale', default=','.join(ITEMS), help='its items, separated by commas; they run in this order')
    parser.add_argument('--scale-shape', default='llama-8b', help='the model of its speeds')
    parser.add_argument('--scale-prompt', type=int, default=32768, help='tokens of its prompt')
    parser.add_argument('--end-within', type=float, default=7,
                        help='seconds after a rank was lost: 5 to notice, the rest for mpirun to end the job')
    a = parser.parse_args()
    a.benches = a.benches or BENCHES
    chosen = a.only.split(',')
    for name in chosen:
        if name not in names:
            parser.error(f'--only: no part {name}; there are {", ".join(names)}')
    a.scale = a.scale.split(',')
    for name in a.scale:
        if name not in ITEMS:
            parser.error(f'--scale: no item {name}; there are {", ".join(ITEMS)}')
    limits = {**LIMITS, **{k: float(v) for k, v in (text.split('=') for text in a.limit)}}

    report = {**machine(), 'parts': {}}
    a.devices = a.devices.split(',') if a.devices else [f'cuda:{i}' for i in range(len(report['gpus']))]
    a.memory_mib = sum(int(memory.split()[0]) for memory in report['memory'])
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
