// In builds without sm_90a: chunks of several tokens take the instructions of Ampere.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/attention/attention_kernels.cuh"

namespace keyline::cuda {

template <class T>
bool AttendWgmma(Stream&, const AttentionArguments&, const Batch&) {
  return false;
}

template bool AttendWgmma<__half>(Stream&, const AttentionArguments&, const Batch&);
template bool AttendWgmma<__nv_bfloat16>(Stream&, const AttentionArguments&, const Batch&);

}  // namespace keyline::cuda
