#include "tests/runtime/cache/cache_driver.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <random>

#include "kernels/cpu/open_cpu.h"
#include "runtime/cache/cache_registry.h"

namespace keyline {
namespace {

Tensor Upload(Device& device, Stream& s, DType type, const void* data, int64_t rows, int64_t cols) {
  absl::StatusOr<Tensor> tensor = Tensor::Allocate(device, type, {rows, cols});
  CHECK(tensor.ok()) << tensor.status();
  if (data != nullptr) s.CopyAsync(tensor->view().data, data, tensor->bytes());
  return *std::move(tensor);
}

reference::Stored StoredAs(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return reference::Stored::kF32;
    case KvFormat::kBF16:
      return reference::Stored::kBF16;
    case KvFormat::kF16:
      return reference::Stored::kF16;
    case KvFormat::kInt8:
      return reference::Stored::kInt8;
    case KvFormat::kInt4:
      return reference::Stored::kInt4;
  }
  return reference::Stored::kF32;
}

}  // namespace

std::unique_ptr<Device> OpenTestDevice(int threads, const std::string& isa) {
  absl::StatusOr<std::unique_ptr<Device>> device = OpenCpuDevice(threads, isa);
  CHECK(device.ok()) << device.status();
  return *std::move(device);
}

std::vector<float> TokenVectors(const AttentionSpec& spec, uint64_t stream, int position) {
  std::mt19937_64 random(stream * 1000003 + position);
  std::normal_distribution<float> normal;
  std::vector<float> qkv(size_t(spec.heads + 2 * spec.kv_heads) * spec.head_dim);
  for (float& x : qkv) x = normal(random);
  // Some tokens draw more attention than others, and some values are larger.
  const float loud = 0.25f + std::fabs(normal(random));
  for (size_t i = size_t(spec.heads) * spec.head_dim; i < qkv.size(); ++i) qkv[i] *= loud;
  return qkv;
}

AttentionSpec PlainSpec(int heads, int kv_heads, int head_dim) {
  AttentionSpec spec;
  spec.heads = heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = head_dim;
  spec.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  return spec;
}

CacheDriver::CacheDriver(Device& device, const CacheConfig& config, const KvCacheShape& shape,
                         const AttentionSpec& spec, DType activations)
    : device_(device),
      shape_(shape),
      spec_(spec),
      activations_(activations),
      stream_(device.NewStream()),
      positions_(shape.lanes, 0) {
  absl::StatusOr<std::unique_ptr<KvCache>> cache = KvCache::Create(device, config, shape);
  CHECK(cache.ok()) << cache.status();
  cache_ = *std::move(cache);
}

void CacheDriver::Open(int lane, const LanePolicy& policy, int layer) {
  cache_->OpenLane(*stream_, lane, policy, layer);
  positions_[lane] = 0;
}

std::vector<std::vector<float>> CacheDriver::Run(const std::vector<Feed>& feeds) {
  return RunTogether({feeds})[0];
}

std::vector<std::vector<std::vector<float>>> CacheDriver::RunTogether(
    const std::vector<std::vector<Feed>>& passes) {
  std::vector<Pass> prepared;
  prepared.reserve(passes.size());
  for (const std::vector<Feed>& feeds : passes) prepared.push_back(Prepare(feeds));
  stream_->Synchronize();
  for (const Pass& pass : prepared) Enqueue(pass);
  std::vector<std::vector<std::vector<float>>> out;
  out.reserve(passes.size());
  for (const Pass& pass : prepared) out.push_back(Read(pass));
  return out;
}

std::vector<std::vector<float>> CacheDriver::RunRecorded(const std::vector<Feed>& feeds) {
  Pass pass = Prepare(feeds);
  CHECK_EQ(pass.batch.max_chunk_tokens, 1);
  if (!recorded_.has_value()) {
    recorded_ = std::move(pass);
  } else {
    CHECK_EQ(pass.batch.chunks, recorded_->batch.chunks);
    const auto copy = [&](const Tensor& to, const Tensor& from) {
      stream_->CopyAsync(to.view().data, from.view().data, from.bytes());
    };
    copy(recorded_->chunk, pass.chunk);
    copy(recorded_->positions, pass.positions);
    copy(recorded_->token_chunk, pass.token_chunk);
    copy(recorded_->qkv, pass.qkv);
    recorded_->chunks = pass.chunks;
  }
  stream_->Replay(/*key=*/1, [&] {
    KvCache::PlaceAhead(*stream_, std::span(&cache_, 1), recorded_->batch);
    cache_->Attend(*stream_, recorded_->batch, recorded_->qkv, spec_, recorded_->out);
  });
  return Read(*recorded_);
}

CacheDriver::Pass CacheDriver::Prepare(const std::vector<Feed>& feeds) {
  const int64_t width = int64_t{spec_.heads + 2 * spec_.kv_heads} * spec_.head_dim;
  const int64_t out_width = int64_t{spec_.heads} * spec_.head_dim;
  Pass pass;
  std::vector<Chunk>& chunks = pass.chunks;
  std::vector<int32_t> positions, token_chunk;
  std::vector<float> qkv;
  Batch& batch = pass.batch;
  for (const Feed& feed : feeds) {
    const int first = positions_[feed.lane];
    const bool piece = feed.chunk_tokens > 0;
    chunks.push_back({.lane = feed.lane,
                      .first_token = batch.tokens,
                      .tokens = feed.tokens,
                      .first_position = first,
                      .takes_mass = first > 0 && !piece,
                      .chunk_tokens = piece ? feed.chunk_tokens : feed.tokens,
                      .chunk_position = piece ? 0 : first});
    for (int p = first; p < first + feed.tokens; ++p) {
      positions.push_back(p);
      token_chunk.push_back(static_cast<int32_t>(chunks.size()) - 1);
      const std::vector<float> token = TokenVectors(spec_, feed.stream, p);
      qkv.insert(qkv.end(), token.begin(), token.end());
    }
    positions_[feed.lane] += feed.tokens;
    batch.tokens += feed.tokens;
    batch.max_chunk_tokens = std::max(batch.max_chunk_tokens, feed.tokens);
  }
  batch.chunks = static_cast<int>(chunks.size());
  pass.chunk = Upload(device_, *stream_, DType::kU8, chunks.data(), batch.chunks, sizeof(Chunk));
  pass.positions = Upload(device_, *stream_, DType::kI32, positions.data(), batch.tokens, 1);
  pass.token_chunk = Upload(device_, *stream_, DType::kI32, token_chunk.data(), batch.tokens, 1);
  const std::vector<uint8_t> qkv_bytes = Encoded(activations_, qkv);
  pass.qkv = Upload(device_, *stream_, activations_, qkv_bytes.data(), batch.tokens, width);
  pass.out = Upload(device_, *stream_, activations_, nullptr, batch.tokens, out_width);
  batch.chunk = pass.chunk.view().as<Chunk>();
  batch.positions = pass.positions.view().as<int32_t>();
  batch.token_chunk = pass.token_chunk.view().as<int32_t>();
  return pass;
}

void CacheDriver::Enqueue(const Pass& pass) {
  // Every other pass, as both ways come to the same.
  if (++passes_ % 2 == 0) KvCache::PlaceAhead(*stream_, std::span(&cache_, 1), pass.batch);
  cache_->Attend(*stream_, pass.batch, pass.qkv, spec_, pass.out);
}

std::vector<std::vector<float>> CacheDriver::Read(const Pass& pass) {
  const int64_t out_width = int64_t{spec_.heads} * spec_.head_dim;
  std::vector<uint8_t> out_bytes(pass.out.bytes());
  stream_->CopyAsync(out_bytes.data(), pass.out.view().data, out_bytes.size());
  stream_->Synchronize();
  const std::vector<float> all = Decoded(activations_, out_bytes);
  std::vector<std::vector<float>> out;
  for (const Chunk& chunk : pass.chunks) {
    const auto begin = all.begin() + chunk.first_token * out_width;
    out.emplace_back(begin, begin + chunk.tokens * out_width);
  }
  return out;
}

reference::KvLaneSpec ReferenceSpec(const std::string& storage, const KvCacheShape& shape,
                                    const AttentionSpec& spec, const LanePolicy& policy) {
  const int length = policy.cache_length.empty() ? shape.length : policy.cache_length[0];
  const auto formats = FormatsOf(storage, shape.plain);
  CHECK(formats.ok()) << formats.status();
  const auto rules = (*MakePolicy(policy.policy))->Rules(policy, length);
  CHECK(rules.ok()) << rules.status();
  return {.policy = policy.policy,
          .length = length,
          .sinks = rules->sinks,
          .grace = policy.grace,
          .keep_initial_fraction = policy.keep_initial_fraction,
          .normalize_scores = policy.normalize_scores,
          .protect_begin = rules->protect_begin,
          .protect_end = rules->protect_end,
          .heads = spec.heads,
          .kv_heads = spec.kv_heads,
          .head_dim = spec.head_dim,
          .scale = spec.scale,
          .window = spec.window,
          .softcap = spec.softcap,
          .k = StoredAs(formats->k),
          .v = StoredAs(formats->v)};
}

std::vector<double> RunReference(reference::KvLaneReference& lane, const AttentionSpec& spec,
                                 uint64_t stream, int position, int tokens, DType activations,
                                 const std::vector<std::vector<int>>* slots) {
  std::vector<float> q, k, v;
  const int64_t q_end = int64_t{spec.heads} * spec.head_dim;
  const int64_t k_end = q_end + int64_t{spec.kv_heads} * spec.head_dim;
  for (int p = position; p < position + tokens; ++p) {
    const std::vector<float> token = Rounded(activations, TokenVectors(spec, stream, p));
    q.insert(q.end(), token.begin(), token.begin() + q_end);
    k.insert(k.end(), token.begin() + q_end, token.begin() + k_end);
    v.insert(v.end(), token.begin() + k_end, token.end());
  }
  if (slots == nullptr) return lane.Step(tokens, q, k, v);
  lane.Write(tokens, *slots, k, v);
  std::vector<double> out = lane.Attend(tokens, q);
  lane.Score(tokens, lane.mass());
  return out;
}

}  // namespace keyline
