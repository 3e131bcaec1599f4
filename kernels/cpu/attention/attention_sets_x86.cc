#include <cstring>

#include "kernels/cpu/attention/attention_kernels.h"

namespace keyline {

const AttentionKernels& AttentionKernelsFor(const char* isa) {
  if (std::strncmp(isa, "avx512", 6) == 0) return kAvx512Attention;
  if (std::strcmp(isa, "avx2") == 0) return kAvx2Attention;
  return kScalarAttention;
}

}  // namespace keyline
