"""What the parts of gpu_report.py share: commands within a time limit, and what became of them."""
import concurrent.futures
import glob
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
KEYLINE = os.path.join(ROOT, 'bin', 'keyline')
GOLDEN = os.path.join(ROOT, 'tests', 'golden')
START = time.monotonic()
# Largest difference of a logit, where the largest logit is 3.8. float32 kernels sum in another order
# than the reference. bfloat16 weights alone, with float32 between the operations (the CPU), make 0.06
# for qwen3 and 0.45 for llama, whose random weights amplify (1.0 for llama3-rope: it says nothing then).
DENSE_BOUND, SELECTIVE_BOUND = 1e-3, 2e-3


def say(text):
    print(f'[{time.monotonic() - START:6.1f} s] {text}', flush=True)


class Part:
    """Runs commands within one time limit and keeps what came of them."""

    def __init__(self, name, limit):
        self.name, self.end, self.began = name, time.monotonic() + limit, time.monotonic()
        self.cases, self.figures = [], []

    def run(self, command, limit=None, **options):
        """(exit code or None where time ran out, stdout, stderr, seconds); ends all it started.
        `limit`: seconds of this command alone, within those of the part."""
        began = time.monotonic()
        end = self.end if limit is None else min(self.end, began + limit)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   errors='replace', cwd=ROOT, start_new_session=True, **options)
        try:
            out, err = process.communicate(timeout=max(end - time.monotonic(), 0.1))
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

    def add_command(self, name, command, limit=None):
        code, out, err, seconds = self.run(command, limit)
        good = code == 0
        why = 'out of time: ' if code is None else f'exit {code}: '
        self.add(name, 'passed' if good else 'failed', seconds, '' if good else why + (err or out))
        return out if good else None

    def add_bench(self, name, command, limit=None):
        """A `keyline bench`: its rows become figures, and are returned."""
        rows = json.loads(self.add_command(name, [*command, '--json'], limit) or '[]')
        for row in rows:
            self.figures.append({**row, 'command': name})
            say(f"{self.name:9} {name}: {row['name']}: {row['value']:.1f} {row['unit']}, {row['ratio']:.2f} of "
                f"{row['limit']:.1f} ({row['limit_by']})")
        return rows

    def summary(self):
        count = {status: sum(case.get(status, case['status'] == status) for case in self.cases)
                 for status in ('passed', 'failed', 'skipped')}
        return {**count, 'seconds': round(time.monotonic() - self.began, 1), 'cases': self.cases,
                'figures': self.figures}


def at_once(jobs, workers):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for done in [pool.submit(*job) for job in jobs]:
            done.result()


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


def mpirun(ranks):
    options = ['--allow-run-as-root', '--oversubscribe', '--bind-to', 'none', '-np', str(ranks)]
    own = os.path.join(ROOT, 'bin', 'mpirun')
    return [own if os.path.exists(own) else 'mpirun', *options]


def running(folder):
    """rank -> pid, of those that have run a few steps (runtime/transport/rank_state.h)."""
    pids = {}
    for path in glob.glob(os.path.join(folder, 'ranks', 'rank.*')):
        with open(path) as file:
            words = file.read().split()
        if len(words) > 5 and int(words[5]) > 20:
            pids[int(words[1])] = int(words[3])
    return pids


def lose_a_rank(part, a, title, flags, number, ranks=2, victim=1, model=os.path.join(GOLDEN, 'dense', 'llama')):
    """A long decode on some ranks; one of them gets the signal once steps run."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        job = subprocess.Popen(
            [*mpirun(ranks), KEYLINE, 'bench', 'decode', '--model', model,
             '--kv-policy', 'last_recent', '--kv-cache-length', '64', '--kv-chunk', '16', '--tokens', '4000',
             '--repeat', '1000', '--batch', str(ranks - 1), *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, cwd=ROOT, start_new_session=True, env={**os.environ, 'KEYLINE_RANK_STATES': folder + '/ranks'})
        pids, took = {}, None
        try:
            while len(pids) < ranks and job.poll() is None and time.monotonic() - began < 40:
                time.sleep(0.05)
                pids = running(folder)
            if len(pids) == ranks:
                os.kill(pids[victim], number)
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
    # A killed rank is named, with where it was; a stopped one is only seen not to go on.
    named = number != signal.SIGKILL or any(
        re.search(rf'gone: rank {victim} pid {pids.get(victim)} step \d+ layer \S+ \S', line) for line in said)
    passed = took is not None and took <= a.end_within and job.returncode != 0 and bool(said) and named
    why = 'it did not run' if len(pids) < ranks else f'exit {job.returncode} after {took} s'
    part.add(title, 'passed' if passed else 'failed', time.monotonic() - began,
             f"{why}: {' | '.join(said) or out[-1500:]}")
    if took is not None:
        part.figures.append({'name': title, 'value': round(took, 3), 'unit': 's'})
