"""The part `scale` of gpu_report.py: one model over all GPUs of this machine.

Items, the most telling first, each with a time limit of its own (--scale golden,kill runs these two):
  golden    logits and kept sets of all GPUs, as threads and under mpirun, equal to those of one
  decode    weak scaling: 8 and 32 sequences a rank on 1, 2, 4, ... GPUs
  prompt    one long prompt on 1, 2, 4, ... GPUs
  large     llama-70b with int8 caches: decode, and the long prompt; 4 GPUs and 160 GB at least
  kill      each rank in turn is killed, and each but the first stopped: the job ends in time and names it
  pipeline  `keyline bench pipeline` on 2 and on all GPUs: what it predicts beside what it measures, and what part
            of the simulator's ideal one prompt comes to
"""
import json
import os
import re
import signal
import struct
import tempfile

from gpu_part import DENSE_BOUND, GOLDEN, KEYLINE, at_once, lose_a_rank, mpirun

ITEMS = {'golden': 90, 'decode': 45, 'prompt': 45, 'large': 75, 'kill': 60, 'pipeline': 60}  # seconds a command
LARGE_MIB = 160000


def counts(a):
    """1, 2, 4, ... and all."""
    powers = [1 << i for i in range(8) if 1 << i <= len(a.devices)]
    return sorted({*powers, len(a.devices)})


def on(a, ranks):
    return ['--device', ','.join(a.devices[:ranks]), '--ranks', str(ranks)]


# ---- equality -------------------------------------------------------------------------------------
def deepen(model, layers, folder):
    """A copy of a tiny checkpoint with more layers, the old ones in turn: as many ranks need as many."""
    with open(os.path.join(model, 'config.json')) as file:
        config = json.load(file)
    with open(os.path.join(model, 'model.safetensors'), 'rb') as file:
        size, = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(size))
        data = file.read()
    old, tensors = config['num_hidden_layers'], []
    for name, tensor in header.items():
        if name == '__metadata__':
            continue
        layer = re.match(r'(.*\.layers\.)(\d+)(\..*)', name)
        copies = range(int(layer[2]), layers, old) if layer else [None]
        for copy in copies:
            tensors.append((f'{layer[1]}{copy}{layer[3]}' if layer else name, tensor))
    new, blob = {}, bytearray()
    for name, tensor in tensors:
        begin, end = tensor['data_offsets']
        new[name] = {**tensor, 'data_offsets': [len(blob), len(blob) + end - begin]}
        blob += data[begin:end]
    text = json.dumps(new).encode()
    text += b' ' * (-len(text) % 8)
    os.makedirs(folder)
    with open(os.path.join(folder, 'config.json'), 'w') as file:
        json.dump({**config, 'num_hidden_layers': layers}, file)
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text + blob)
    return folder


def floats(path):
    with open(path, 'rb') as file:
        size, = struct.unpack('<Q', file.read(8))
        header = json.loads(file.read(size))
        begin, end = header['logits']['data_offsets']
        file.seek(8 + size + begin)
        return struct.unpack(f'<{(end - begin) // 4}f', file.read(end - begin))


def score(part, program, flags, folder, name):
    """(logits, kept sets) or None where it failed, which is reported."""
    logits, trace = os.path.join(folder, name + '.safetensors'), os.path.join(folder, name + '.json')
    code, out, err, seconds = part.run([*program, 'score', *flags, '--logits-out', logits, '--trace-out', trace],
                                       ITEMS['golden'])
    if code != 0:
        part.add(name, 'failed', seconds, f'exit {code}: {err or out}')
        return None, seconds
    with open(trace) as file:
        return (floats(logits), json.load(file)['sequences']), seconds


def golden(part, a):
    """Every policy's decisions hang on the last bit of some layer's input: kept sets are a sharp test."""
    count = len(a.devices)
    tokens = os.path.join(GOLDEN, 'dense', 'llama', 'expected.safetensors')
    policies = {'dense': ['--kv-cache-length', '256'],
                'h2o': ['--kv-cache-length', '32', '--kv-grace', '4', '--kv-sinks', '2', '--decode-tail', '8'],
                'last_recent': ['--kv-cache-length', '24', '--kv-sinks', '2', '--decode-tail', '8']}
    with tempfile.TemporaryDirectory() as folder:
        model = deepen(os.path.join(GOLDEN, 'dense', 'llama'), max(count, 3), os.path.join(folder, 'deep'))

        def compare(policy):
            flags = ['--model', model, '--token-ids', tokens, '--dtype', 'f32', '--kv-policy', policy, '--kv-chunk', '8',
                     *policies[policy]]
            one, _ = score(part, [KEYLINE], [*flags, '--device', a.devices[0]], folder, f'{policy} on 1')
            ways = [(f'{policy} on {count} threads', [KEYLINE], on(a, count)),
                    (f'{policy} on {count} processes', [*mpirun(count), KEYLINE], on(a, count))]
            for name, program, where in ways if one else []:
                many, seconds = score(part, program, [*flags, *where], folder, name)
                if many is None:
                    continue
                difference = max(abs(x - y) for x, y in zip(one[0], many[0]))
                same = len(one[0]) == len(many[0]) and difference <= DENSE_BOUND and one[1] == many[1]
                part.add(name, 'passed' if same else 'failed', seconds,
                         '' if same else f'logits differ by {difference}, kept sets equal: {one[1] == many[1]}',
                         worst_difference=difference)
        at_once([(compare, policy) for policy in policies], min(a.jobs, 3))


# ---- speed ----------------------------------------------------------------------------------------
def bench(part, a, item, kind, ranks, flags, shape=None, processes=True):
    """Several ranks are a process each, as tensors take NCCL there."""
    processes = processes and ranks > 1
    program = [*mpirun(ranks), KEYLINE] if processes else [KEYLINE]
    name = f"{kind} of {shape or a.scale_shape} on {ranks}{' processes' if processes else ''}"
    return part.add_bench(name, [*program, 'bench', kind, '--shape', shape or a.scale_shape, '--dtype', 'bf16',
                                 *on(a, ranks), *flags], ITEMS[item])


def decode(part, a):
    for ranks in counts(a):
        bench(part, a, 'decode', 'decode', ranks, ['--batch', f'{8 * ranks},{32 * ranks}', '--repeat', '2'])


def prompt(part, a):
    for ranks in counts(a):
        bench(part, a, 'prompt', 'prefill', ranks, ['--prompt', str(a.scale_prompt), '--repeat', '2'])


def large(part, a):
    if len(a.devices) < 4 or a.memory_mib < LARGE_MIB:
        part.add('llama-70b', 'skipped', 0, f'{len(a.devices)} GPUs with {a.memory_mib} MiB; it needs 4 with {LARGE_MIB}')
        return
    flags = ['--kv-storage', 'int8', '--repeat', '1']
    bench(part, a, 'large', 'decode', len(a.devices), ['--batch', '1,8,64', *flags], 'llama-70b')
    bench(part, a, 'large', 'prefill', len(a.devices), ['--prompt', str(a.scale_prompt), *flags], 'llama-70b')


def pipeline(part, a):
    for ranks in sorted({min(2, len(a.devices)), len(a.devices)}):
        rows = bench(part, a, 'pipeline', 'pipeline', ranks,
                     ['--batch', '8,32', '--prompt', str(a.scale_prompt), '--repeat', '2'], processes=False)
        for row in rows:
            if 'error' in row:
                part.figures.append({'name': f"{row['name']}: error of the prediction", 'value': row['error'], 'unit': '1'})
            if 'of_ideal' in row:  # asked for: 0.95
                part.figures.append({'name': f"{row['name']}: share of it", 'value': row['of_ideal'], 'unit': '1'})


# ---- lost ranks -----------------------------------------------------------------------------------
def kill(part, a):
    count = len(a.devices)
    if count < 2:
        part.add('kill', 'skipped', 0, 'one GPU: nobody is left')
        return
    with tempfile.TemporaryDirectory() as folder:
        model = deepen(os.path.join(GOLDEN, 'dense', 'llama'), max(count, 3), os.path.join(folder, 'deep'))
        # A rank 0 that stops looks like one without requests: the others wait for ever, by design.
        losses = [(rank, 'killed', signal.SIGKILL) for rank in range(count)]
        losses += [(rank, 'stopped', signal.SIGSTOP) for rank in range(1, count)]
        at_once([(lose_a_rank, part, a, f'rank {rank} of {count} {what}', ['--device', ','.join(a.devices)], number,
                  count, rank, model) for rank, what, number in losses], max(1, min(a.jobs // count * 2, 3)))


def scale(part, a):
    if not a.devices:
        part.add('scale', 'skipped', 0, 'no GPU')
        return
    bodies = {'golden': golden, 'decode': decode, 'prompt': prompt, 'large': large, 'kill': kill, 'pipeline': pipeline}
    for item in ITEMS:
        if item not in a.scale:
            continue
        try:
            bodies[item](part, a)
        except Exception as error:  # the next items still have something to say
            part.add(item, 'failed', 0, f'{type(error).__name__}: {error}')
