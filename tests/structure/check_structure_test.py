#!/usr/bin/env python3
"""Each rule of check_structure.py reports its violation, and a good tree passes."""

import pathlib
import tempfile
import unittest

import check_structure

HEADER = '// What the thing is.\n#pragma once\n'

# A small tree that keeps every rule, exceptions included.
GOOD = {
    'README.md': 'Paths as in /usr/local/cuda, build/work/x and ${HOME}/work/y are fine.\n',
    'kernels/device/README.md': 'x\n',
    'kernels/device/device.h': HEADER + '#include <memory>\n#include "absl/status/status.h"\n',
    'kernels/device/open_device.cc': '#include "kernels/cpu/open_cpu.h"\n',
    'kernels/ops/README.md': 'x\n',
    'kernels/ops/ops.h': HEADER + '#include "kernels/device/device.h"\n',
    'kernels/cpu/README.md': 'matmul/ multiplies.\n',
    'kernels/cpu/open_cpu.h': HEADER + '#include "kernels/ops/ops.h"\n',
    'kernels/cpu/matmul/rows.h': HEADER + '#include "kernels/cpu/open_cpu.h"\n',
    'kernels/cuda/README.md': 'x\n',
    'kernels/cuda/cuda_device.h': HEADER + '#include <cuda_runtime.h>\n',
    'runtime/transport/README.md': 'x\n',
    'runtime/transport/communicator.h': HEADER + '#include "kernels/device/device.h"\n',
    'runtime/transport/mpi_communicator.cc': '#include <mpi.h>\n',
    'runtime/transport/nccl_communicator.cc':
        '#include <nccl.h>\n#include "kernels/cuda/cuda_device.h"\n',
    'runtime/cache/README.md': 'x\n',
    'runtime/cache/kv_cache.h': HEADER,
    'runtime/pipeline/README.md': 'x\n',
    'runtime/pipeline/step_plan.proto': 'syntax = "proto3";\n',
    'runtime/pipeline/stage.cc':
        '#include "runtime/cache/kv_cache.h"\n#include "runtime/pipeline/step_plan.pb.h"\n',
    'rpc/README.md': 'x\n',
    'rpc/grpc/health/v1/health.proto': 'syntax = "proto3";\n',
    'rpc/server.cc': '#include <grpcpp/grpcpp.h>\n#include "grpc/health/v1/health.pb.h"\n',
    'launch/README.md': 'x\n',
    'launch/bench.cc': '#include "kernels/ops/ops.h"\n#include "rpc/server.h"\n',
    'rpc/server.h': HEADER,
    'tests/rpc/server_test.cc': '#include "rpc/server.h"\nTEST(A, B) { EXPECT_EQ(1, 1); }\n',
    'tests/laws.h': HEADER,
    'tests/laws.cc': 'void Law() { ASSERT_TRUE(true); }\n',
    'tests/laws_test.cc': '#include "tests/laws.h"\n',
}

# (rule, where it must be reported, files to add to the good tree or to change in it)
BAD = [
    ('floors', 'runtime/cache/a.cc', {
        'runtime/cache/a.cc': '#include "runtime/transport/communicator.h"\n'}),
    ('floors', 'runtime/cache/a.cc', {
        'runtime/cache/a.cc': '#include "runtime/pipeline/step_plan.pb.h"\n'}),
    ('floors', 'kernels/device/a.cc', {'kernels/device/a.cc': '#include "kernels/ops/ops.h"\n'}),
    ('floors', 'runtime/cache/a.cc', {'runtime/cache/a.cc': '#include "kernels/cpu/open_cpu.h"\n'}),
    ('floors', 'launch/a.cc', {'launch/a.cc': '#include "kernels/cpu/open_cpu.h"\n'}),
    ('floors', 'kernels/cpu/a.cc', {
        'kernels/cpu/a.cc': '#include "kernels/cuda/cuda_device.h"\n'}),
    ('floors', 'launch/a.cc', {'launch/a.cc': '#include "tests/laws.h"\n'}),
    ('floors', 'tests/reference/a.cc', {
        'tests/reference/a.cc': '#include "kernels/cpu/open_cpu.h"\n'}),
    ('fences', 'runtime/transport/a.cc', {'runtime/transport/a.cc': '#include <mpi.h>\n'}),
    ('fences', 'runtime/transport/a.cc', {'runtime/transport/a.cc': '#include <nccl.h>\n'}),
    ('fences', 'launch/a.cc', {'launch/a.cc': '#include <grpcpp/server.h>\n'}),
    ('fences', 'launch/a.cc', {'launch/a.cc': '#include "grpc/health/v1/health.grpc.pb.h"\n'}),
    ('fences', 'kernels/cpu/a.cc', {'kernels/cpu/a.cc': '#include <cuda_runtime.h>\n'}),
    ('fences', 'kernels/cuda/a.cu', {'kernels/cuda/a.cu': '#include <google/protobuf/any.h>\n'}),
    ('include_roots', 'kernels/ops/a.cc', {'kernels/ops/a.cc': '#include "ops.h"\n'}),
    ('include_roots', 'kernels/ops/a.cc', {'kernels/ops/a.cc': '#include "kernels/ops/gone.h"\n'}),
    ('switches', 'launch/a.cc', {'launch/a.cc': '#ifdef USE_MPI\n#endif\n'}),
    ('switches', 'launch/a.cc', {'launch/a.cc': 'int a;\n # if defined(WITH_CUDA)\n#endif\n'}),
    ('file_sizes', 'launch/a.cc', {'launch/a.cc': 'int a;\n' * 501}),
    ('folder_sizes', 'launch', {f'launch/a{i}.cc': 'int a;\n' for i in range(14)}),
    ('names', 'launch/BigFile.cc', {'launch/BigFile.cc': 'int a;\n'}),
    ('names', 'launch/file_utils.cc', {'launch/file_utils.cc': 'int a;\n'}),
    ('names', 'launch/a.cc', {'launch/a.cc': 'class CacheManager {};\n'}),
    ('readmes', 'runtime/model', {'runtime/model/a.cc': 'int a;\n'}),
    ('headers', 'launch/a.h', {'launch/a.h': '// What.\nint a;\n'}),
    ('headers', 'launch/a.h', {'launch/a.h': '#pragma once\n'}),
    ('machine_paths', 'configs/a.pbtxt', {'configs/a.pbtxt': 'model: "/' + 'home/me/model"\n'}),
    ('unfinished', 'launch/a.cc', {'launch/a.cc': '// TO' + 'DO: more\n'}),
    ('assertions', 'tests/a_test.cc', {'tests/a_test.cc': 'TEST(A, B) {}\n'}),
]


class CheckStructureTest(unittest.TestCase):

    def violations(self, files):
        with tempfile.TemporaryDirectory() as root:
            for path, text in files.items():
                file = pathlib.Path(root, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding='utf-8')
            return check_structure.check(root)

    def test_a_good_tree_passes(self):
        self.assertEqual(self.violations(GOOD), [])

    def test_each_violation_is_reported_and_nothing_else(self):
        for rule, path, files in BAD:
            with self.subTest(rule=rule, files=sorted(files)):
                found = self.violations({**GOOD, **files})
                self.assertEqual([(v.rule, v.path) for v in found], [(rule, path)], found)

    def test_there_is_a_bad_tree_for_each_rule(self):
        self.assertEqual({rule for rule, _, _ in BAD}, set(check_structure.RULES))

    def test_headers_and_sources_of_one_name_count_once(self):
        files = {f'launch/a{i}{end}': '// What.\n#pragma once\n'
                 for i in range(13) for end in ('.h', '.cc')}
        self.assertEqual(self.violations({**GOOD, **files}), [])


if __name__ == '__main__':
    unittest.main()
