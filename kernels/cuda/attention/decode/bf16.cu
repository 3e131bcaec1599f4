#include "kernels/cuda/attention/decode/attend.cuh"

namespace keyline::cuda {

template void LaunchDecodeOf<KvFormat::kBF16, KvFormat::kBF16>(Stream&, const DecodePass&);

}  // namespace keyline::cuda
