#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {
namespace {

struct Available {
  const KernelSet* sets[5] = {};

  Available() {
    int n = 0;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
      sets[n++] = &kAvx512BF16Kernels;
    }
    if (avx512) sets[n++] = &kAvx512Kernels;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets[n++] = &kAvx2Kernels;
    sets[n] = &kScalarKernels;
  }
};

}  // namespace

const KernelSet* const* KernelSets() {
  static const Available available;
  return available.sets;
}

}  // namespace keyline
