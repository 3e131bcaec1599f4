#include "kernels/cpu/matmul/probe.h"

#include <glog/logging.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

#include "kernels/cpu/isa/kernel_set.h"
#include "kernels/cpu/open_cpu.h"

namespace keyline::cpu {
namespace {

constexpr int64_t kBytes = int64_t{256} << 20;
constexpr int kPasses = 6;

template <class Work>
double Seconds(const Work& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  return taken.count();
}

}  // namespace

MachineProbe::MachineProbe(int threads) : pool_(threads) {
  absl::StatusOr<std::unique_ptr<Device>> device = OpenCpuDevice(1, "");
  CHECK(device.ok()) << device.status();
  device_ = *std::move(device);
  absl::StatusOr<Tensor> memory = Tensor::Allocate(*device_, DType::kU8, {kBytes});
  CHECK(memory.ok()) << memory.status();
  memory_ = *std::move(memory);
  std::memset(memory_.view().data, 1, kBytes);  // pages never written are all one page of zeros
}

double MachineProbe::ReadOnce() {
  const KernelSet& kernels = **KernelSets();
  const auto* bytes = memory_.view().as<std::byte>();
  std::atomic<float> sink = 0;
  return static_cast<double>(kBytes) / Seconds([&] {
           pool_.ParallelFor(kBytes / 64, [&](int64_t begin, int64_t end) {
             sink = kernels.read_blocks(bytes + begin * 64, end - begin);
           });
         });
}

double MachineProbe::MultiplyOnce(DType dtype) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << Name(dtype);
  constexpr int64_t kPieces = 8;  // of each thread
  constexpr int64_t kPieceRounds = 1 << 18;
  const KernelSet& kernels = **KernelSets();
  const auto multiply = dtype == DType::kF32 ? kernels.multiply_f32 : kernels.multiply_bf16;
  std::atomic<float> sink = 0;
  const double seconds = Seconds([&] {
    pool_.ParallelFor(kPieces * pool_.threads(), [&](int64_t begin, int64_t end) {
      sink = multiply((end - begin) * kPieceRounds);
    });
  });
  const int products = dtype == DType::kF32 ? 1 : 2;  // of one lane in one step
  return 2.0 * products * kLanes * kProbeChains * kPieces * kPieceRounds * pool_.threads() /
         seconds;
}

double MeasureReadBandwidth(int threads) {
  MachineProbe probe(threads);
  double best = 0;
  for (int i = 0; i < kPasses; ++i) best = std::max(best, probe.ReadOnce());
  return best;
}

double MeasurePeakFlops(DType dtype, int threads) {
  MachineProbe probe(threads);
  double best = 0;
  for (int i = 0; i < kPasses; ++i) best = std::max(best, probe.MultiplyOnce(dtype));
  return best;
}

}  // namespace keyline::cpu
