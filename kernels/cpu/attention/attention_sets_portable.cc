#include "kernels/cpu/attention/attention_kernels.h"

namespace keyline {

const AttentionKernels& AttentionKernelsFor(const char*) { return kScalarAttention; }

}  // namespace keyline
