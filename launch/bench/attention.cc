// bench attention: KvCache::Attend alone, on caches that are full and whose slots are in the order
// that their policy leaves them in. With policies that score, attention mass, scores and the choice
// of slots are part of what is measured; the limit has reading K and V and the products alone. A
// pass of chunks of one token is replayed like a step is, so that its kernels follow each other as
// there.
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/kv_cache.h"
#include "runtime/model/rope_table.h"
#include "runtime/pipeline/batch_upload.h"

namespace keyline::bench {
namespace {

constexpr int kFillTokens = 2048;  // prefilled at a time
constexpr int kMixTokens = 512;
constexpr int kMostCaches = 64;
// The first eviction may have no scores yet, and the second pass of a kind is when a device records
// it.
constexpr int kWarmUps = 2;

struct Case {
  std::string policy, storage;
  int batch = 1;  // lanes
  int depth = 1;  // slots in use
  int chunk = 1;  // tokens of each lane
};

class Layers {
 public:
  Layers(const Run& run, OneDevice& one, const PipelineSpec& spec, const Case& c)
      : one_(one),
        c_(c),
        config_(run.opened.model->config()),
        cache_(spec.cache),
        dtype_(spec.dtype),
        stream_(one.device->NewStream()),
        passes_(run.args.repeat * PassesOfRound(c)) {
    cache_.policy.policy = c.policy;
    cache_.policy.cache_length.clear();
    cache_.enabled.clear();
    cache_.storage = c.storage;
    cache_.lanes = c.batch;
  }

  static int PassesOfRound(const Case& c) { return c.chunk == 1 ? 8 : 2; }

  // Caches of as many layers as it takes to be cold, with lanes that are all alike.
  absl::Status Fill() {
    ASSIGN_OR_RETURN(const auto policy, MakePolicy(c_.policy));
    ASSIGN_OR_RETURN(formats_, FormatsOf(c_.storage, dtype_));
    evicts_ = policy->needs().evicts;
    // What does not evict grows by what is measured.
    const int length = evicts_ ? c_.depth : c_.depth + (passes_ + kWarmUps) * c_.chunk;
    ASSIGN_OR_RETURN(const LaneRules rules, policy->Rules(cache_.policy, length));
    const int max_chunk = evicts_ ? policy->MaxChunk(rules) : c_.chunk;
    if (c_.chunk > max_chunk) {
      return absl::InvalidArgumentError(
          absl::StrCat("--chunk: ", c_.chunk, " tokens; policy '", c_.policy, "' takes at most ",
                       max_chunk, " at a time in a cache of ", c_.depth, " slots (--depth)"));
    }
    const int fill = std::min(kFillTokens, c_.depth);
    const int most = std::max({c_.batch * c_.chunk, fill, kMixTokens});
    const KvCacheShape shape{.lanes = c_.batch,
                             .kv_heads = config_.kv_heads,
                             .head_dim = config_.head_dim,
                             .length = length,
                             .max_tokens = most,
                             .plain = dtype_};
    const double wanted = static_cast<double>(ColdBytes(*one_.device)) / KvBytes(c_.depth);
    const int count = static_cast<int>(std::clamp(std::ceil(wanted), 1.0, double{kMostCaches}));
    for (int i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(auto cache, KvCache::Create(*one_.device, cache_, shape,
                                                   i > 0 ? caches_[0].get() : nullptr));
      caches_.push_back(std::move(cache));
    }

    const DType type = one_.device->ActivationType(dtype_);
    const int64_t heads = config_.heads;
    const int64_t hs = config_.head_dim;
    ASSIGN_OR_RETURN(qkv_, RandomTensor(*one_.device, *stream_, type, most,
                                        (heads + 2 * config_.kv_heads) * hs, 3));
    ASSIGN_OR_RETURN(out_, Tensor::Allocate(*one_.device, type, {most, heads * hs}));
    const int mixed = evicts_ && policy->needs().scores ? c_.depth / 2 : 0;
    ASSIGN_OR_RETURN(rope_,
                     RopeTable::Make(*one_.device, *stream_, config_.rope, config_.rotary_dim,
                                     c_.depth + mixed + (passes_ + kWarmUps) * c_.chunk));
    spec_.heads = config_.heads;
    spec_.kv_heads = config_.kv_heads;
    spec_.head_dim = config_.head_dim;
    spec_.scale = 1.0f / std::sqrt(static_cast<float>(hs));
    spec_.rope = rope_.rope();

    // One lane for all: filled, then partly overwritten so that fresh tokens lie among old ones.
    caches_[0]->OpenLane(*stream_, 0, cache_.policy, 0);
    for (int at = 0; at < c_.depth; at += fill) {
      RETURN_IF_ERROR(RunOne(at, std::min(fill, c_.depth - at), c_.depth));
    }
    position_ = c_.depth;
    for (const int step = std::min(max_chunk, kMixTokens); position_ < c_.depth + mixed;) {
      const int tokens = std::min(step, c_.depth + mixed - position_);
      RETURN_IF_ERROR(RunOne(position_, tokens, 0));
      position_ += tokens;
    }
    ASSIGN_OR_RETURN(const std::string lane, caches_[0]->SaveLane(*stream_, 0));
    for (const auto& cache : caches_) {
      for (int l = 0; l < c_.batch; ++l) {
        RETURN_IF_ERROR(cache->RestoreLane(*stream_, l, lane));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Measure(const Run& run) {
    const bool decode = c_.chunk == 1;
    const double bytes = KvBytes(evicts_ ? c_.depth : position_ + passes_ / 2.0 * c_.chunk);
    // A chunk's first query sees all of the cache but the rest of its chunk.
    const double seen = bytes / KvBytes(1) - (decode ? 0 : c_.chunk / 2.0);
    const double operations = 4.0 * c_.batch * config_.heads * config_.head_dim * c_.chunk * seen;
    for (int i = 0; i < kWarmUps; ++i) RETURN_IF_ERROR(Pass().status());
    std::vector<double> seconds;
    double read = 0, multiply = 0;
    for (int round = 0; round < run.args.repeat; ++round) {
      read = std::max(read, one_.probe->ReadBandwidth(static_cast<size_t>(bytes)));
      multiply = std::max(multiply, one_.probe->MultiplyRate(one_.device->ActivationType(dtype_)));
      for (int i = 0; i < PassesOfRound(c_); ++i) {
        ASSIGN_OR_RETURN(const double taken, Pass());
        seconds.push_back(taken);
      }
    }
    const double taken = Median(seconds);
    const bool by_read = bytes / read > operations / multiply;
    const double least = std::max(bytes / read, operations / multiply);
    const double work = (decode ? bytes : operations) * 1e-9;
    run.report.Add({.name = absl::StrCat(c_.policy, " ", c_.storage, " B=", c_.batch, " S=",
                                         c_.depth, decode ? "" : absl::StrCat(" q=", c_.chunk)),
                    .value = work / taken,
                    .unit = decode ? "GB/s" : "GFLOP/s",
                    .limit = work / least,
                    .limit_by = by_read ? absl::StrCat("reading ", absl::SixDigits(bytes * 1e-6),
                                                       " MB at ", Rate(read, "B"))
                                        : absl::StrCat("multiplying at ", Rate(multiply, "FLOP")),
                    .more = {{"policy", c_.policy},
                             {"storage", c_.storage},
                             {"batch", c_.batch},
                             {"depth", c_.depth},
                             {"chunk", c_.chunk},
                             {"us", taken * 1e6},
                             {"bytes", bytes},
                             {"operations", operations},
                             {"caches", caches_.size()}}});
    return absl::OkStatus();
  }

 private:
  double KvBytes(double slots) const {
    return slots * c_.batch * config_.kv_heads *
           static_cast<double>(KvRowBytes(formats_.k, config_.head_dim) +
                               KvRowBytes(formats_.v, config_.head_dim));
  }

  // `tokens` more of each of the first `lanes` lanes. `whole`: tokens of the first chunk, of which
  // this is a piece; 0: a chunk of its own.
  absl::StatusOr<BatchUpload> Upload(int lanes, int position, int tokens, int whole) {
    ASSIGN_OR_RETURN(BatchUpload upload, BatchUpload::Make(*one_.device, c_.batch, lanes * tokens));
    Set(upload, lanes, position, tokens, whole);
    return upload;
  }

  void Set(BatchUpload& upload, int lanes, int position, int tokens, int whole) {
    pipeline::PlanBatch plan;
    for (int l = 0; l < lanes; ++l) {
      pipeline::PlanChunk& chunk = *plan.add_chunks();
      chunk.set_lane(l);
      chunk.set_first_position(position);
      for (int t = 0; t < tokens; ++t) chunk.add_token_ids(0);
      chunk.set_takes_mass(whole == 0);
      chunk.set_chunk_tokens(whole == 0 ? tokens : whole);
      chunk.set_chunk_position(whole == 0 ? position : 0);
    }
    upload.Set(*stream_, plan);
    stream_->Synchronize();
  }

  void Attend(KvCache& cache, const Batch& batch) {
    cache.Attend(*stream_, batch, qkv_.view().Rows(0, batch.tokens), spec_,
                 out_.view().Rows(0, batch.tokens));
  }

  absl::Status RunOne(int position, int tokens, int whole) {
    ASSIGN_OR_RETURN(const BatchUpload upload, Upload(1, position, tokens, whole));
    Attend(*caches_[0], upload.batch());
    stream_->Synchronize();
    return absl::OkStatus();
  }

  // One chunk of every lane through all caches; device seconds of one cache.
  absl::StatusOr<double> Pass() {
    if (!upload_.has_value()) {
      ASSIGN_OR_RETURN(upload_, BatchUpload::Make(*one_.device, c_.batch, c_.batch * c_.chunk));
    }
    Set(*upload_, c_.batch, position_, c_.chunk, 0);
    const auto attend = [&] {
      KvCache::PlaceAhead(*stream_, caches_, upload_->batch());
      for (const auto& cache : caches_) Attend(*cache, upload_->batch());
    };
    const double taken = one_.probe->Seconds(*stream_, [&] {
      if (c_.chunk == 1) {
        stream_->Replay(0, attend);
      } else {
        attend();
      }
    });
    position_ += c_.chunk;
    return taken / static_cast<double>(caches_.size());
  }

  OneDevice& one_;
  const Case c_;
  const ModelConfig& config_;
  CacheConfig cache_;
  DType dtype_;
  std::unique_ptr<Stream> stream_;  // its own: what it replays is on these caches
  StorageFormats formats_;
  bool evicts_ = false;
  int passes_;                         // measured
  int position_ = 0;                   // of every lane
  std::optional<BatchUpload> upload_;  // of measured passes
  std::vector<std::unique_ptr<KvCache>> caches_;
  RopeTable rope_;
  AttentionSpec spec_;
  Tensor qkv_, out_;
};

}  // namespace

absl::Status Attention(const Run& run) {
  const Arguments& args = run.args;
  ASSIGN_OR_RETURN(OneDevice one, OpenOneDevice(run));
  ASSIGN_OR_RETURN(const PipelineSpec spec, MakeSpec(run.options, run.opened, {}));
  Describe(run, spec, one.device->description(), 1, ThreadsOfRank(run.options, 1));
  const auto or_default = [](const std::vector<std::string>& list, const std::string& one_value) {
    return list.empty() ? std::vector<std::string>{one_value} : list;
  };
  for (const std::string& storage : or_default(args.storages, spec.cache.storage)) {
    for (int batch : args.batch) {
      for (int depth : args.depth) {
        for (int chunk : args.chunk) {
          for (const std::string& policy : or_default(args.policies, spec.cache.policy.policy)) {
            Layers layers(run, one, spec,
                          {.policy = policy,
                           .storage = storage,
                           .batch = batch,
                           .depth = std::max(depth, 1),
                           .chunk = chunk});
            RETURN_IF_ERROR(layers.Fill());
            RETURN_IF_ERROR(layers.Measure(run));
          }
        }
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace keyline::bench
