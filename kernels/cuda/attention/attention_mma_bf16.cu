#include "kernels/cuda/attention/attention_mma.cuh"

namespace keyline::cuda {

template void AttendMma<__nv_bfloat16>(Stream&, const AttentionArguments&, const Batch&);
template void RunDecodePass<__nv_bfloat16>(Stream&, const DecodePass&);

}  // namespace keyline::cuda
