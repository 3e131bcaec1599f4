#!/usr/bin/env python3
"""Checks that the tree keeps the plan of the house (ARCHITECTURE.md, folders and floors).

    tests/structure/check_structure.py [ROOT] [--rule NAME]

Prints `path:line: rule: what and what to do` for each violation; exits 1 if there is any. Looks at
the files that git tracks or would track (all files where there is no git). Standard library only.
A rule is one generator function in RULES; check_structure_test.py has a bad tree for each.
"""

import argparse
import collections
import os
import pathlib
import re
import subprocess
import sys

# Lowest floor first. A folder includes its own and lower floors; siblings, those of one line, never
# include each other. A folder below these (kernels/cpu/matmul) belongs to the one above it.
FLOORS = [
    ['kernels/device'],
    ['kernels/ops'],
    ['kernels/cpu', 'kernels/cuda'],
    ['runtime/files'],
    ['runtime/config'],
    ['runtime/transport', 'runtime/cache', 'runtime/weights', 'runtime/sampling', 'runtime/text'],
    ['runtime/model'],
    ['runtime/pipeline'],
    ['runtime/engine'],
    ['rpc'],
    ['launch'],
]
FLOOR_OF = {unit: floor for floor, units in enumerate(FLOORS) for unit in units}

# Backends are private to kernels/ops' callers, which see them as an op table. The exceptions, as
# (including file, included file):
PRIVATE = ('kernels/cpu', 'kernels/cuda')
DOORS = [
    (r'kernels/device/open_device\.cc', r'kernels/(cpu/open_cpu|cuda/open_cuda)\.h'),
    (r'kernels/device/open_device\.cc', r'kernels/ops/op_table\.h'),
    (r'runtime/transport/nccl_communicator\.cc', r'kernels/cuda/cuda_(device|check)\.h'),
]

# Headers of other projects that only some files may see: (name, header, files).
FENCES = [
    ('MPI', r'mpi\.h', r'runtime/transport/mpi_communicator\.cc'),
    ('NCCL', r'nccl\.h', r'runtime/transport/nccl_communicator\.cc'),
    ('gRPC', r'(grpcpp|grpc)/.*|.*\.grpc\.pb\.h', r'(tests/)?rpc/.*'),
    ('CUDA', r'(cuda|cublas|curand|nvml|cub/|cute/|cutlass/|thrust/).*',
     r'kernels/cuda/.*|runtime/transport/nccl_communicator\.cc|tests/kernels/.*\.cu'),
]

CODE = ('.cc', '.h', '.cu', '.cuh')
HEADERS = ('.h', '.cuh')
SOURCES = CODE + ('.proto', '.py', '.sh')
TOP_FOLDERS = ('kernels', 'runtime', 'rpc', 'launch', 'tests')
VAGUE = {'util', 'utils', 'helper', 'helpers', 'common', 'manager', 'base', 'impl'}
MAX_LINES = 500
MAX_UNITS = 14

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]')
SWITCH = re.compile(r'^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*\b(?:WITH|USE|HAVE)_\w+')
TYPE = re.compile(r'^\s*(?:template\s*<.*>\s*)?(?:class|struct|enum(?:\s+class)?)\s+(\w+)')
ASSERTION = re.compile(r'\b(?:EXPECT|ASSERT)_\w+\s*\(|\b(?:FAIL|ADD_FAILURE)\s*\(|self\.assert')
MACHINE_PATH = re.compile(r'(?<![\w.)}-])/(?:work|root|home|Users|mnt|scratch)/\w')
UNFINISHED = re.compile(r'\b(?:TO' r'DO|FIX' r'ME|XX' r'X)\b')

Violation = collections.namedtuple('Violation', 'path line rule text')


class Tree:
    """The files under a root, by their path from it; text is read once."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.paths = sorted(self._list())
        self._known = set(self.paths)
        self._protos = [path for path in self.paths if path.endswith('.proto')]
        self._lines = {}

    def _list(self):
        git = subprocess.run(
            ['git', '-C', str(self.root), 'ls-files', '--cached', '--others', '--exclude-standard'],
            capture_output=True, text=True, check=False)
        if git.returncode == 0:
            return [path for path in git.stdout.splitlines() if (self.root / path).is_file()]
        return [str(pathlib.PurePath(folder, name).relative_to(self.root))
                for folder, _, names in os.walk(self.root) for name in names]

    def lines(self, path):
        """Of a text file; none of one that is binary or very large."""
        if path not in self._lines:
            data = (self.root / path).read_bytes()
            text = '' if len(data) > 1 << 20 or b'\0' in data else data.decode('utf-8', 'replace')
            self._lines[path] = text.splitlines()
        return self._lines[path]

    def of_kind(self, suffixes, folders=TOP_FOLDERS):
        return [path for path in self.paths
                if path.endswith(tuple(suffixes)) and path.split('/')[0] in folders]

    def includes(self, path):
        """(line, quoted, header as written, file of the tree or None)."""
        for number, line in enumerate(self.lines(path), 1):
            found = INCLUDE.match(line)
            if found:
                yield number, found[1] == '"', found[2], self.resolve(found[2])

    def resolve(self, header):
        """The file a header is, or is generated from; None if another project's."""
        if header in self._known:
            return header
        if header.endswith('.pb.h'):
            proto = re.sub(r'(\.grpc)?\.pb\.h$', '.proto', header)
            for path in self._protos:
                if path == proto or path.endswith('/' + proto):
                    return path
        return None


def unit_of(path):
    """The folder of FLOORS that a file belongs to; None for tests and others."""
    folder = os.path.dirname(path)
    while folder:
        if folder in FLOOR_OF:
            return folder
        folder = os.path.dirname(folder)
    return None


def through_a_door(path, target):
    return any(re.fullmatch(by, path) and re.fullmatch(to, target) for by, to in DOORS)


def floors(tree):
    """Own and lower floors only; backends are private; nobody includes tests."""
    for path in tree.of_kind(CODE):
        unit = unit_of(path)
        for line, _, header, target in tree.includes(path):
            if target is None or through_a_door(path, target):
                continue
            other = unit_of(target)
            if target.startswith('tests/'):
                if not path.startswith('tests/'):
                    yield path, line, f'includes {header}: tests are not part of the product'
            elif path.startswith('tests/reference/'):
                if other in PRIVATE:
                    yield path, line, f'includes {header}: the oracle must not know a backend'
            elif unit is None or other is None or other == unit:
                continue
            elif FLOOR_OF[other] == FLOOR_OF[unit]:
                yield path, line, f'includes {header}: {unit} and {other} are siblings'
            elif FLOOR_OF[other] > FLOOR_OF[unit]:
                yield path, line, f'includes {header}: {other} is above {unit}'
            elif other in PRIVATE:
                yield path, line, f'includes {header}: {other} is private; go through kernels/ops'


def fences(tree):
    """Headers of MPI, NCCL, gRPC and CUDA only where they belong; none of gRPC's in .cu files."""
    for path in tree.of_kind(CODE):
        for line, _, header, target in tree.includes(path):
            for name, pattern, allowed in FENCES:
                # Our own grpc/health/v1/health.proto makes no gRPC header, unless .grpc.pb.h.
                ours = target is not None and not header.endswith('.grpc.pb.h')
                if not ours and re.fullmatch(pattern, header) and not re.fullmatch(allowed, path):
                    yield path, line, f'includes {header}: {name} is seen in {allowed} alone'
            if path.endswith(('.cu', '.cuh')) and re.search(r'grpc|protobuf|\.pb\.h$', header):
                yield path, line, f'includes {header}: nvcc cannot compile gRPC and Protobuf'


def include_roots(tree):
    """Quoted headers of ours are named from the root."""
    for path in tree.of_kind(CODE):
        for line, quoted, header, target in tree.includes(path):
            ours = '/' not in header or header.split('/')[0] in TOP_FOLDERS or header[0] == '.'
            if quoted and target is None and ours:
                yield path, line, f'includes "{header}": no such file from the root'


def switches(tree):
    """Absence is a file, not an #if."""
    for path in tree.of_kind(CODE):
        for number, line in enumerate(tree.lines(path), 1):
            if SWITCH.match(line):
                yield path, number, f'{line.strip()}: let CMake choose x.cc or x_absent.cc'


def file_sizes(tree):
    for path in tree.of_kind(SOURCES):
        if len(tree.lines(path)) > MAX_LINES:
            yield path, MAX_LINES + 1, f'{len(tree.lines(path))} lines, at most {MAX_LINES}'


def folder_sizes(tree):
    """A folder can be surveyed: x.h, x.cc and x.cu count as one, subfolders not at all."""
    stems = collections.defaultdict(set)
    for path in tree.of_kind(CODE):
        stems[os.path.dirname(path)].add(os.path.splitext(os.path.basename(path))[0])
    for folder, names in stems.items():
        if len(names) > MAX_UNITS:
            yield folder, 0, f'{len(names)} sources, at most {MAX_UNITS}: split it by what they do'


def names(tree):
    """lower_snake file names; nothing called after what everything is."""
    for path in tree.of_kind(SOURCES):
        stem = os.path.splitext(os.path.basename(path))[0]
        if not re.fullmatch(r'[a-z][a-z0-9_]*|__\w+__', stem):
            yield path, 0, 'file names are lower_snake'
        for part in VAGUE & set(stem.split('_')):
            yield path, 0, f'"{part}" says nothing: name the file after what it does'
    for path in tree.of_kind(CODE):
        for number, line in enumerate(tree.lines(path), 1):
            found = TYPE.match(line)
            words = re.findall(r'[A-Z][a-z0-9]*', found[1]) if found else []
            for word in {w for w in words if w.lower() in VAGUE}:
                yield path, number, f'{found[1]}: "{word}" says nothing'


def readmes(tree):
    """Each folder with sources of the product: a README, or its `name/` in the one above."""
    product = [folder for folder in TOP_FOLDERS if folder != 'tests']
    for folder in sorted({os.path.dirname(path) for path in tree.of_kind(CODE, product)}):
        above, name = os.path.split(folder)
        told = f'{above}/README.md' in tree.paths and any(
            f'{name}/' in line for line in tree.lines(f'{above}/README.md'))
        if f'{folder}/README.md' not in tree.paths and not told:
            yield folder, 0, (f'no README.md, and none above that says what {name}/ is: what lives '
                              'here, how to add one, what proves it')


def headers(tree):
    """#pragma once, and an opening comment that says what the thing is."""
    for path in tree.of_kind(HEADERS):
        lines = tree.lines(path)
        if not any(line.strip() == '#pragma once' for line in lines):
            yield path, 1, 'has no #pragma once'
        if not lines or not re.match(r'//\s*\w', lines[0]):
            yield path, 1, 'does not open with what the thing is'


def machine_paths(tree):
    for path in tree.paths:
        for number, line in enumerate(tree.lines(path), 1):
            found = MACHINE_PATH.search(line)
            if found:
                yield path, number, f'"{found[0]}...": a path of one machine'


def unfinished(tree):
    for path in tree.of_kind(SOURCES + ('.txt', '.md', '.cmake')):
        for number, line in enumerate(tree.lines(path), 1):
            if UNFINISHED.search(line):
                yield path, number, f'{line.strip()}: finish it or write down that it is missing'


def assertions(tree):
    """A test that cannot fail is none."""
    for path in tree.of_kind(('_test.cc', '_test.cu', '_test.py'), ('tests',)):
        if '_under_test.' in path:  # x_under_test.cc is what tests test
            continue
        lines = tree.lines(path)
        # A test of laws calls the functions that assert.
        shared = [t for _, _, _, t in tree.includes(path) if t and t.startswith('tests/')]
        for target in list(shared):
            shared.append(os.path.splitext(target)[0] + '.cc')
        for other in shared:
            lines = lines + (tree.lines(other) if other in tree.paths else [])
        if not any(ASSERTION.search(line) for line in lines):
            yield path, 1, 'asserts nothing'


RULES = {rule.__name__: rule for rule in (
    floors, fences, include_roots, switches, file_sizes, folder_sizes, names, readmes, headers,
    machine_paths, unfinished, assertions)}


def check(root, rules=tuple(RULES)):
    tree = Tree(root)
    return sorted(Violation(path, line, rule, text)
                  for rule in rules for path, line, text in RULES[rule](tree))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('root', nargs='?', default=pathlib.Path(__file__).parents[2])
    parser.add_argument('--rule', choices=RULES, help='this one alone')
    arguments = parser.parse_args()
    rules = [arguments.rule] if arguments.rule else list(RULES)
    violations = check(arguments.root, rules)
    for violation in violations:
        where = violation.path + (f':{violation.line}' if violation.line else '')
        print(f'{where}: {violation.rule}: {violation.text}')
    print(f'{len(violations)} violations of {len(rules)} rules', file=sys.stderr)
    return 1 if violations else 0


if __name__ == '__main__':
    sys.exit(main())
