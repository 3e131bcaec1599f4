#include "kernels/cuda/attention/attention_mma.cuh"

namespace keyline::cuda {

template void AttendMma<__nv_bfloat16>(cudaStream_t, const AttentionArguments&, const Batch&);

}  // namespace keyline::cuda
