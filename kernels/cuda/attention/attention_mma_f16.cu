#include "kernels/cuda/attention/attention_mma.cuh"

namespace keyline::cuda {

template void AttendMma<__half>(Stream&, const AttentionArguments&, const Batch&);
template void RunDecodePass<__half>(Stream&, const DecodePass&);

}  // namespace keyline::cuda
