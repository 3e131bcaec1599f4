#include "kernels/cuda/attention/decode/attend.cuh"

namespace keyline::cuda {

template void LaunchDecodeOf<KvFormat::kInt4, KvFormat::kInt4>(Stream&, const DecodePass&);

}  // namespace keyline::cuda
