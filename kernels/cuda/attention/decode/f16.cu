#include "kernels/cuda/attention/decode/attend.cuh"

namespace keyline::cuda {

template void LaunchDecodeOf<KvFormat::kF16, KvFormat::kF16>(Stream&, const DecodePass&);

}  // namespace keyline::cuda
