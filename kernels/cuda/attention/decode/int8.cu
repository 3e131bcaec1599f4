#include "kernels/cuda/attention/decode/attend.cuh"

namespace keyline::cuda {

template void LaunchDecodeOf<KvFormat::kInt8, KvFormat::kInt8>(Stream&, const DecodePass&);

}  // namespace keyline::cuda
