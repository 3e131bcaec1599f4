// What the kinds of `keyline bench` share: the flags, the opened model, the table they fill. One
// kind a file; each measures beside its work what the device can do at best (kernels/ops/probe.h).
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/probe.h"
#include "launch/bench/report.h"
#include "launch/wiring.h"

namespace keyline::bench {

struct Arguments {
  std::string what = "decode";
  std::string shape;
  std::vector<int> batch = {1, 8};
  std::vector<int> depth = {0};  // tokens in the cache before the measured ones
  std::vector<int> chunk = {1};
  std::vector<std::string> policies;  // empty: the one of --kv-policy
  std::vector<std::string> storages;
  int tokens = 64;                                   // decoded, per sequence
  int prompt = 512;                                  // prefilled
  std::vector<int> simulate = {1, 2, 4, 8, 16, 64};  // numbers of ranks
  int repeat = 3;
  std::vector<double> resident = {0, 0.5, 1};  // shares of the layers that stay on the device
  bool json = false;
};

struct Run {
  const LaunchOptions& options;
  const Arguments& args;
  const OpenedModel& opened;
  Report& report;
};

// The kinds. Rank 0's process alone adds rows.
absl::Status Decode(const Run& run);     // through the engine, whole steps
absl::Status Prefill(const Run& run);    // through the engine, one prompt
absl::Status Attention(const Run& run);  // KvCache::Attend alone
absl::Status Gemv(const Run& run);       // the matrices of a layer and the head, few rows
absl::Status Offload(const Run& run);    // decode and prefill with layers that stream
absl::Status Hop(const Run& run);        // a hidden state from rank to rank
absl::Status DeviceRates(const Run& run);
absl::Status Pipeline(const Run& run);  // the stages by themselves, and how many ranks would do

// Room for sequences that keep everything, whatever the chunk.
PipelineNeeds DecodeNeeds(const LaunchOptions& options, const Arguments& args);

// What all ranks of a pipeline can do together. Ranks on the CPU share one memory; GPUs are probed
// one by one, and under MPI those of other processes are taken to be like this one's.
class RankProbes {
 public:
  static absl::StatusOr<RankProbes> Open(const LaunchOptions& options, int ranks);
  double ReadBandwidth();
  double MultiplyRate(DType dtype);
  // Share of the machine that `busy` ranks have at most.
  double Share(int busy) const;
  std::string description() const { return devices_[0]->description(); }
  int threads() const { return threads_; }

 private:
  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<std::unique_ptr<DeviceProbe>> probes_;  // of each device
  double others_ = 1;                                 // devices there are for each one probed
  int threads_ = 0;
};

// The fields of all rows: model, device, dtype, ...
void Describe(const Run& run, const PipelineSpec& spec, const std::string& device, int ranks,
              int threads);

// One device for kinds that need no pipeline. INVALID_ARGUMENT where several ranks were asked for.
struct OneDevice {
  std::unique_ptr<Device> device;
  std::unique_ptr<DeviceProbe> probe;
  std::unique_ptr<Stream> stream;
};
absl::StatusOr<OneDevice> OpenOneDevice(const Run& run);

// Memory that a measured operation walks through so that it finds nothing in a cache.
inline size_t ColdBytes(const Device& device) {
  return device.memory_is_host() ? size_t{256} << 20 : size_t{512} << 20;
}

// Roughly normal numbers. dtype: kF32 or kBF16.
absl::StatusOr<Tensor> RandomTensor(Device& device, Stream& stream, DType dtype, int64_t rows,
                                    int64_t cols, uint32_t seed);

inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace keyline::bench
