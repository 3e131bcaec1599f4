// What this machine can do at best, with the instructions of the device's own kernels.
#include <glog/logging.h>

#include <atomic>
#include <chrono>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/cpu_ops.h"

namespace keyline::cpu {

void ReadMemory(Stream& s, const void* memory, size_t bytes) {
  const KernelSet& kernels = AsCpu(s).kernels();
  const auto* from = static_cast<const std::byte*>(memory);
  std::atomic<float> sink = 0;
  AsCpu(s).pool().ParallelFor(static_cast<int64_t>(bytes / 64), [&](int64_t begin, int64_t end) {
    sink = kernels.read_blocks(from + begin * 64, end - begin);
  });
}

// From registers, over about 10 ms.
double MultiplyRate(Stream& s, DType dtype) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << Name(dtype);
  constexpr int64_t kPieces = 8;  // of each thread
  constexpr int64_t kPieceRounds = 1 << 18;
  const KernelSet& kernels = AsCpu(s).kernels();
  ThreadPool& pool = AsCpu(s).pool();
  const auto multiply = dtype == DType::kF32 ? kernels.multiply_f32 : kernels.multiply_bf16;
  std::atomic<float> sink = 0;
  const auto begin = std::chrono::steady_clock::now();
  pool.ParallelFor(kPieces * pool.threads(), [&](int64_t first, int64_t last) {
    sink = multiply((last - first) * kPieceRounds);
  });
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  const int products = dtype == DType::kF32 ? 1 : 2;  // of one lane in one step
  return 2.0 * products * kLanes * kProbeChains * kPieces * kPieceRounds * pool.threads() /
         taken.count();
}

double UploadRate(Stream& /*s*/) { return 0; }

}  // namespace keyline::cpu
