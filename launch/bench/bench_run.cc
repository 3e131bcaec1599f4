#include "launch/bench/bench_run.h"

#include <glog/logging.h>

#include <bit>
#include <cstdint>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/ranks.h"
#include "runtime/transport/communicator.h"

namespace keyline::bench {

absl::StatusOr<RankProbes> RankProbes::Open(const LaunchOptions& options, int ranks) {
  RankProbes all;
  all.threads_ = ThreadsOfRank(options, ranks) * ranks;
  std::set<std::string> names;
  for (int r = 0; r < ranks; ++r) {
    if (StartedByMpi() && r != ProcessRank()) continue;
    const std::string name = DeviceOfRank(options, r);
    if (!names.insert(name).second) continue;
    ASSIGN_OR_RETURN(auto device, OpenDevice(name, {.threads = all.threads_}));
    ASSIGN_OR_RETURN(auto probe, DeviceProbe::Make(*device));
    all.devices_.push_back(std::move(device));
    all.probes_.push_back(std::move(probe));
  }
  if (StartedByMpi() && !all.devices_[0]->memory_is_host()) all.others_ = ranks;
  return all;
}

double RankProbes::ReadBandwidth() {
  double sum = 0;
  for (const auto& probe : probes_) sum += probe->ReadBandwidth();
  return sum * others_;
}

double RankProbes::MultiplyRate(DType dtype) {
  double sum = 0;
  for (const auto& probe : probes_) sum += probe->MultiplyRate(dtype);
  return sum * others_;
}

double RankProbes::Share(int busy) const {
  const double devices = static_cast<double>(devices_.size()) * others_;
  return std::min(1.0, busy / devices);
}

void Describe(const Run& run, const PipelineSpec& spec, const std::string& device, int ranks,
              int threads) {
  run.report.Set("model", run.opened.name);
  run.report.Set("device", device);
  run.report.Set("dtype", Name(spec.dtype));
  run.report.Set("weight_storage", Name(spec.weights.storage()));
  run.report.Set("policy", spec.cache.policy.policy);
  run.report.Set("storage", spec.cache.storage);
  run.report.Set("ranks", ranks);
  run.report.Set("threads", threads);
}

absl::StatusOr<OneDevice> OpenOneDevice(const Run& run) {
  ASSIGN_OR_RETURN(const int ranks, NumberOfRanks(run.options));
  if (ranks != 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ranks: bench ", run.args.what, " measures one device, not ", ranks, "; leave it out"));
  }
  OneDevice one;
  ASSIGN_OR_RETURN(one.device, OpenDevice(DeviceOfRank(run.options, 0),
                                          {.threads = ThreadsOfRank(run.options, 1),
                                           .deterministic = run.options.deterministic}));
  ASSIGN_OR_RETURN(one.probe, DeviceProbe::Make(*one.device));
  one.stream = one.device->NewStream();
  return one;
}

absl::StatusOr<Tensor> RandomTensor(Device& device, Stream& stream, DType dtype, int64_t rows,
                                    int64_t cols, uint32_t seed) {
  CHECK(dtype == DType::kF32 || dtype == DType::kBF16) << Name(dtype);
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(device, dtype, {rows, cols}));
  std::minstd_rand random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(rows * cols);
  for (float& value : values) value = normal(random);
  const void* from = values.data();
  std::vector<uint16_t> halves;
  if (dtype == DType::kBF16) {
    halves.reserve(values.size());
    for (float value : values) {
      halves.push_back(static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16));
    }
    from = halves.data();
  }
  stream.CopyAsync(tensor.view().data, from, tensor.bytes());
  stream.Synchronize();
  return tensor;
}

}  // namespace keyline::bench
