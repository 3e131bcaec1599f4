#include "kernels/cpu/isa/kernel_set.h"

namespace keyline {

const KernelSet* const* KernelSets() {
  static const KernelSet* const sets[] = {&kScalarKernels, nullptr};
  return sets;
}

}  // namespace keyline
