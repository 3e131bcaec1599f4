// Matrix products of SmolLM2-135M (dim 576, inner 1536, vocabulary 49152, 30 layers) on the CPU, as
// one decode step or one prefill runs them: distinct weights for every layer.
//
// Prints beside each figure what the same run measured as the machine's limit, and the ratio: of
// the read bandwidth for few rows, of the peak for many.
#include <benchmark/benchmark.h>
#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/open_cpu.h"
#include "kernels/device/tensor.h"
#include "kernels/ops/ops.h"
#include "kernels/ops/probe.h"

namespace keyline {
namespace {

constexpr int kLayers = 30;
constexpr int kDim = 576;
constexpr int kQkv = 960;
constexpr int kInner = 1536;
constexpr int kVocabulary = 49152;

int Threads() {
  const char* threads = std::getenv("KEYLINE_BENCH_THREADS");
  return threads != nullptr ? std::atoi(threads)
                            : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

std::unique_ptr<Device> OpenCpu() {
  const char* isa = std::getenv("KEYLINE_CPU_ISA");
  auto device = OpenCpuDevice(Threads(), isa == nullptr ? "" : isa);
  CHECK(device.ok()) << device.status();
  return *std::move(device);
}

Tensor MustAllocate(Device& device, DType dtype, std::initializer_list<int64_t> shape) {
  auto tensor = Tensor::Allocate(device, dtype, shape);
  CHECK(tensor.ok()) << tensor.status();
  return *std::move(tensor);
}

std::vector<float> RandomFloats(int64_t n) {
  std::vector<float> values(n);
  std::minstd_rand random(7);
  for (float& v : values) v = static_cast<float>(random()) * 1e-10f - 0.1f;
  return values;
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// All weights of the model, packed for the CPU.
class Model {
 public:
  Model(Device& device, DType dtype) : device_(&device), dtype_(dtype) {
    const auto bytes =
        static_cast<int64_t>((LayerWeights() + HeadWeights()) * TraitsOf(dtype).block_bytes);
    memory_ = MustAllocate(device, DType::kU8, {bytes});
    for (int i = 0; i < kLayers; ++i) {
      layers_.push_back(
          {Pack(kQkv, kDim), Pack(kDim, kDim), Pack(2 * kInner, kDim), Pack(kDim, kInner)});
    }
    head_ = Pack(kVocabulary, kDim);
    norm_values_ = MustAllocate(device, DType::kF32, {kDim});
    for (int i = 0; i < kDim; ++i) norm_values_.view().as<float>()[i] = 1;
    norm_ = {norm_values_.view().as<float>(), 1e-5f};
  }

  // One pass over `rows` tokens, the last `head_rows` of which get logits.
  void Run(Stream& s, int rows, int head_rows, const TensorView& hidden, const TensorView& wide,
           const TensorView& logits) const {
    for (const Layer& layer : layers_) {
      ops::NormMatMul(s, wide.Columns(0, kQkv), hidden, norm_, layer.qkv);
      ops::MatMulAdd(s, hidden, wide.Columns(0, kDim), layer.o);
      ops::NormGatedMatMul(s, wide.Columns(0, kInner), hidden, norm_, layer.gate_up,
                           Activation::kSilu);
      ops::MatMulAdd(s, hidden, wide.Columns(0, kInner), layer.down);
    }
    ops::NormMatMul(s, logits, hidden.Rows(rows - head_rows, head_rows), norm_, head_);
  }

  static double LayerWeights() {
    return kLayers * (double{kDim} * (kQkv + kDim + 2 * kInner + kInner));
  }
  static double HeadWeights() { return double{kDim} * kVocabulary; }

 private:
  struct Layer {
    Weight qkv, o, gate_up, down;
  };

  Weight Pack(int64_t rows, int64_t cols) {
    const Weight weight = {memory_.view().as<std::byte>() + used_, dtype_, rows, cols, nullptr};
    used_ += ops::PackedBytes(*device_, dtype_, rows, cols);
    ops::PackRows(*device_, weight, 0, rows, RandomFloats(rows * cols).data());
    return weight;
  }

  Device* device_;
  DType dtype_;
  Tensor memory_;  // all weights, one behind the other
  size_t used_ = 0;
  std::vector<Layer> layers_;
  Weight head_;
  Tensor norm_values_;
  RmsNorm norm_;
};

void Pass(benchmark::State& state, DType dtype, int rows, int head_rows) {
  const std::unique_ptr<Device> device = OpenCpu();
  const Model model(*device, dtype);
  const std::unique_ptr<Stream> stream = device->NewStream();
  const Tensor hidden = MustAllocate(*device, DType::kF32, {rows, kDim});
  const Tensor wide = MustAllocate(*device, DType::kF32, {rows, kInner});
  const Tensor logits = MustAllocate(*device, DType::kF32, {head_rows, kVocabulary});
  const std::vector<float> start = RandomFloats(int64_t{rows} * kDim);
  const auto probe = *DeviceProbe::Make(*device);
  std::vector<double> seconds, bytes_per_second, flops;
  for (auto _ : state) {
    stream->CopyAsync(hidden.view().data, start.data(), hidden.bytes());
    const auto begin = std::chrono::steady_clock::now();
    model.Run(*stream, rows, head_rows, hidden, wide, logits);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    state.SetIterationTime(taken.count());
    seconds.push_back(taken.count());
    bytes_per_second.push_back(probe->ReadBandwidth());
    flops.push_back(probe->MultiplyRate(dtype));
  }
  const double median = Median(seconds);
  const double bytes =
      (Model::LayerWeights() + Model::HeadWeights()) * TraitsOf(dtype).block_bytes / median;
  const double operations =
      2 * (rows * Model::LayerWeights() + head_rows * Model::HeadWeights()) / median;
  state.counters["tok/s"] = rows / median;
  state.counters["GB/s"] = bytes * 1e-9;
  state.counters["of_read"] = bytes / Median(bytes_per_second);
  state.counters["GFLOP/s"] = operations * 1e-9;
  state.counters["of_peak"] = operations / Median(flops);
}

void RegisterAll() {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const auto add = [dtype](const std::string& name, int rows, int head_rows) {
      benchmark::RegisterBenchmark((name + "/" + std::string(Name(dtype))).c_str(), Pass, dtype,
                                   rows, head_rows)
          ->Unit(benchmark::kMillisecond)
          ->UseManualTime();
    };
    add("decode_1", 1, 1);
    add("decode_8", 8, 8);
    add("prefill_512", 512, 1);
  }
}

}  // namespace
}  // namespace keyline

int main(int argc, char** argv) {
  keyline::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
