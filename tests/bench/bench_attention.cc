// The KV cache on the CPU: a pass through the caches of all layers of a small model, as one decode
// step or one chunk of a prompt runs them, without the matrix products.
//
// Beside each figure: for decoding, bytes of K and V read a second and their share of the read
// bandwidth measured in the same run; for chunks, arithmetic and its share of the float32 peak.
// Shapes: SmolLM2-135M (9 heads on 3 KV heads of 64), Llama-3.2-1B (32 on 8 of 64).
#include <benchmark/benchmark.h>
#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cpu/open_cpu.h"
#include "kernels/ops/probe.h"
#include "runtime/cache/kv_cache.h"

namespace keyline {
namespace {

struct Shape {
  const char* name;
  int layers, heads, kv_heads, head_dim;
};
constexpr Shape kSmolLm2 = {"smollm2", 30, 9, 3, 64};
constexpr Shape kLlama1B = {"llama1b", 16, 32, 8, 64};

int Threads() {
  const char* threads = std::getenv("KEYLINE_BENCH_THREADS");
  return threads != nullptr ? std::atoi(threads)
                            : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// The caches of a model's layers, with one lane, and inputs for passes of up to `tokens`.
class Model {
 public:
  Model(const Shape& shape, const std::string& policy, const std::string& storage, DType plain,
        int length, int tokens)
      : shape_(shape) {
    const char* isa = std::getenv("KEYLINE_CPU_ISA");
    device_ = *OpenCpuDevice(Threads(), isa == nullptr ? "" : isa);
    stream_ = device_->NewStream();
    config_.policy.policy = policy;
    config_.storage = storage;
    const KvCacheShape cache{.lanes = 1,
                             .kv_heads = shape.kv_heads,
                             .head_dim = shape.head_dim,
                             .length = length,
                             .max_tokens = tokens,
                             .plain = plain};
    for (int l = 0; l < shape.layers; ++l) {
      auto created = KvCache::Create(*device_, config_, cache, l > 0 ? layers_[0].get() : nullptr);
      CHECK(created.ok()) << created.status();
      layers_.push_back(*std::move(created));
    }
    spec_.heads = shape.heads;
    spec_.kv_heads = shape.kv_heads;
    spec_.head_dim = shape.head_dim;
    spec_.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    const int64_t width = int64_t{shape.heads + 2 * shape.kv_heads} * shape.head_dim;
    qkv_ = *Tensor::Allocate(*device_, DType::kF32, {tokens, width});
    out_ =
        *Tensor::Allocate(*device_, DType::kF32, {tokens, int64_t{shape.heads} * shape.head_dim});
    std::minstd_rand random(5);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < tokens * width; ++i) qkv_.view().as<float>()[i] = normal(random);
    Restart();
  }

  void Restart() {
    for (auto& layer : layers_) layer->OpenLane(*stream_, 0, config_.policy, 0);
    position_ = 0;
  }
  int position() const { return position_; }
  Device& device() { return *device_; }

  // One pass of n tokens of the lane's sequence through all layers; seconds.
  double Run(int n) {
    const Chunk chunk{.lane = 0,
                      .first_token = 0,
                      .tokens = n,
                      .first_position = position_,
                      .takes_mass = position_ > 0,
                      .chunk_tokens = n,
                      .chunk_position = position_};
    std::vector<int32_t> positions(n);
    const std::vector<int32_t> token_chunk(n, 0);
    for (int i = 0; i < n; ++i) positions[i] = position_ + i;
    const Batch batch{.tokens = n,
                      .chunks = 1,
                      .max_chunk_tokens = n,
                      .chunk = &chunk,
                      .positions = positions.data(),
                      .token_chunk = token_chunk.data()};
    const auto begin = std::chrono::steady_clock::now();
    for (auto& layer : layers_) {
      layer->Attend(*stream_, batch, qkv_.view().Rows(0, n), spec_, out_.view().Rows(0, n));
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    position_ += n;
    return taken.count();
  }

  // Bytes of K and V in `slots` slots of all layers.
  double KvBytes(KvFormat k, KvFormat v, int slots) const {
    return double{1} * shape_.layers * shape_.kv_heads * slots *
           (KvRowBytes(k, shape_.head_dim) + KvRowBytes(v, shape_.head_dim));
  }

 private:
  Shape shape_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
  CacheConfig config_;
  std::vector<std::unique_ptr<KvCache>> layers_;
  AttentionSpec spec_;
  Tensor qkv_;
  Tensor out_;
  int position_ = 0;
};

KvFormat FormatOf(const std::string& storage, DType plain, bool key) {
  if (storage == "int8" || (storage == "k8v4" && key)) return KvFormat::kInt8;
  if (storage != "plain") return KvFormat::kInt4;
  return plain == DType::kF32    ? KvFormat::kF32
         : plain == DType::kBF16 ? KvFormat::kBF16
                                 : KvFormat::kF16;
}

// Decode steps with a full cache: each forgets a token.
void Decode(benchmark::State& state, Shape shape, std::string policy, std::string storage,
            DType plain, int length) {
  Model model(shape, policy, storage, plain, length, length);
  model.Run(length);
  model.Run(1);  // the first eviction has no scores yet
  const auto probe = *DeviceProbe::Make(model.device());
  std::vector<double> seconds, read;
  for (auto _ : state) {
    const double taken = model.Run(1);
    state.SetIterationTime(taken);
    seconds.push_back(taken);
    read.push_back(probe->ReadBandwidth());
  }
  const double bytes =
      model.KvBytes(FormatOf(storage, plain, true), FormatOf(storage, plain, false), length) /
      Median(seconds);
  state.counters["us/layer"] = Median(seconds) / shape.layers * 1e6;
  state.counters["GB/s"] = bytes * 1e-9;
  state.counters["of_read"] = bytes / Median(read);
}

// One chunk of n: the first of a sequence (length 0), or one more of a sequence whose cache of
// `length` slots is full.
void PromptChunk(benchmark::State& state, Shape shape, std::string policy, std::string storage,
                 DType plain, int n, int length) {
  Model model(shape, policy, storage, plain, std::max(n, length), std::max(n, length));
  const auto probe = *DeviceProbe::Make(model.device());
  std::vector<double> seconds, peak;
  for (auto _ : state) {
    if (length == 0) {
      model.Restart();
    } else if (model.position() == 0) {
      model.Run(length);
    }
    const double taken = model.Run(n);
    state.SetIterationTime(taken);
    seconds.push_back(taken);
    peak.push_back(probe->MultiplyRate(DType::kF32));
  }
  // Causal: a query of the first chunk sees half of it on average.
  const double seen = length == 0 ? n / 2.0 : length - n / 2.0;
  const double operations =
      4.0 * shape.layers * shape.heads * shape.head_dim * n * seen / Median(seconds);
  state.counters["us/layer"] = Median(seconds) / shape.layers * 1e6;
  state.counters["GFLOP/s"] = operations * 1e-9;
  state.counters["of_peak"] = operations / Median(peak);
}

void RegisterAll() {
  const auto decode = [](const Shape& shape, const char* policy, const char* storage, DType plain,
                         int length) {
    const std::string name =
        std::string("decode/") + shape.name + "/" + policy + "/" +
        (std::string(storage) == "plain" ? std::string(Name(plain)) : storage) + "/" +
        std::to_string(length);
    benchmark::RegisterBenchmark(name.c_str(), Decode, shape, policy, storage, plain, length)
        ->Unit(benchmark::kMicrosecond)
        ->UseManualTime()
        ->MinTime(0.3);
  };
  for (int length : {1024, 4096}) {
    for (const char* policy : {"last_recent", "h2o", "h2o_vnorm"}) {
      decode(kSmolLm2, policy, "plain", DType::kF32, length);
      decode(kSmolLm2, policy, "plain", DType::kBF16, length);
    }
    for (const char* storage : {"int8", "int4", "k8v4"}) {
      decode(kSmolLm2, "last_recent", storage, DType::kF32, length);
    }
    decode(kSmolLm2, "qh2o_vnorm", "int8", DType::kF32, length);
    decode(kLlama1B, "last_recent", "plain", DType::kBF16, length);
    decode(kLlama1B, "h2o", "plain", DType::kBF16, length);
  }
  const auto chunk = [](const Shape& shape, const char* policy, const char* storage, DType plain,
                        int n, int length) {
    const std::string name =
        std::string("chunk/") + shape.name + "/" + policy + "/" +
        (std::string(storage) == "plain" ? std::string(Name(plain)) : storage) + "/" +
        std::to_string(n) + (length == 0 ? "" : "_of_" + std::to_string(length));
    benchmark::RegisterBenchmark(name.c_str(), PromptChunk, shape, policy, storage, plain, n,
                                 length)
        ->Unit(benchmark::kMillisecond)
        ->UseManualTime()
        ->MinTime(0.3);
  };
  for (const char* storage : {"plain", "int8"}) {
    chunk(kSmolLm2, "last_recent", storage, DType::kF32, 512, 0);
    chunk(kSmolLm2, "last_recent", storage, DType::kF32, 256, 1024);
    chunk(kSmolLm2, "h2o", storage, DType::kF32, 256, 1024);
  }
  chunk(kSmolLm2, "last_recent", "plain", DType::kBF16, 512, 0);
  chunk(kSmolLm2, "last_recent", "plain", DType::kF32, 2048, 0);
}

}  // namespace
}  // namespace keyline

int main(int argc, char** argv) {
  keyline::RegisterAll();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
