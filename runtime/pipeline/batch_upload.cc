#include "runtime/pipeline/batch_upload.h"

#include <glog/logging.h>

#include <algorithm>
#include <cstring>

#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

static_assert(sizeof(Chunk) % sizeof(int32_t) == 0);
constexpr size_t kChunkInts = sizeof(Chunk) / sizeof(int32_t);
// At the same place in every upload, as a recording needs it: where the sampler puts tokens.
constexpr size_t kSharedInts = 1;
// Per token: id, position, chunk; and for the head: row, lane, position, target.
constexpr size_t kTokenInts = 3;
constexpr size_t kHeadInts = 4;

}  // namespace

size_t BatchUpload::BytesFor(int lanes, int max_tokens, int max_batches) {
  return sizeof(int32_t) *
         (kSharedInts + kChunkInts * lanes * max_batches + (kTokenInts + kHeadInts) * max_tokens);
}

absl::StatusOr<BatchUpload> BatchUpload::Make(Device& device, int lanes, int max_tokens,
                                              int max_batches) {
  const size_t bytes = BytesFor(lanes, max_tokens, max_batches);
  BatchUpload upload;
  upload.lanes_ = lanes;
  upload.max_tokens_ = max_tokens;
  upload.max_batches_ = max_batches;
  ASSIGN_OR_RETURN(upload.memory_,
                   Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(bytes)}));
  upload.image_.reserve(bytes / sizeof(int32_t));
  return upload;
}

void BatchUpload::Set(Stream& s, std::span<const pipeline::PlanBatch* const> plans,
                      int32_t first_row) {
  CHECK_LE(plans.size(), static_cast<size_t>(max_batches_));
  image_ = {first_row};
  batches_.clear();
  int tokens = 0;
  for (const pipeline::PlanBatch* plan : plans) {
    batches_.push_back(Add(*plan));
    tokens += batches_.back().batch.tokens;
  }
  CHECK_LE(tokens, max_tokens_);
  s.CopyAsync(memory_.view().data, image_.data(), image_.size() * sizeof(int32_t));
}

UploadedBatch BatchUpload::Add(const pipeline::PlanBatch& plan) {
  UploadedBatch out;
  out.first_row = memory_.view().as<int32_t>();
  std::vector<Chunk> chunks;
  std::vector<int32_t> ids, positions, token_chunk;
  struct Rows {
    std::vector<int32_t> row, lane, position, target;
    void Add(int32_t r, int32_t l, int32_t p, int32_t t) {
      row.push_back(r);
      lane.push_back(l);
      position.push_back(p);
      target.push_back(t);
    }
  } sampled, scored;
  Batch& batch = out.batch;
  std::vector<bool> lane_used(lanes_, false);
  for (const pipeline::PlanChunk& c : plan.chunks()) {
    CHECK(c.lane() >= 0 && c.lane() < lanes_) << "lane " << c.lane() << " of " << lanes_;
    CHECK(!lane_used[c.lane()]) << "lane " << c.lane() << " twice in one batch";
    CHECK_GT(c.token_ids_size(), 0);
    lane_used[c.lane()] = true;
    const int32_t first = static_cast<int32_t>(ids.size());
    chunks.push_back({.lane = c.lane(),
                      .first_token = first,
                      .tokens = c.token_ids_size(),
                      .first_position = c.first_position(),
                      .takes_mass = c.takes_mass() ? 1 : 0,
                      .chunk_tokens = c.chunk_tokens(),
                      .chunk_position = c.chunk_position()});
    for (int i = 0; i < c.token_ids_size(); ++i) {
      ids.push_back(c.token_is_drawn() ? kDrawnToken : static_cast<int32_t>(c.token_ids(i)));
      positions.push_back(c.first_position() + i);
      token_chunk.push_back(static_cast<int32_t>(chunks.size()) - 1);
    }
    const int32_t last = static_cast<int32_t>(ids.size()) - 1;
    switch (c.output()) {
      case pipeline::OUTPUT_SAMPLE:
        sampled.Add(last, c.lane(), positions.back() + 1, -1);
        break;
      case pipeline::OUTPUT_LOGPROBS:
      case pipeline::OUTPUT_LOGITS:
        CHECK_EQ(c.targets_size(), c.token_ids_size());
        for (int i = 0; i < c.token_ids_size(); ++i) {
          scored.Add(first + i, c.lane(), positions[first + i] + 1, c.targets(i));
        }
        break;
      default:
        break;
    }
    batch.max_chunk_tokens = std::max(batch.max_chunk_tokens, c.token_ids_size());
  }
  batch.tokens = static_cast<int>(ids.size());
  batch.chunks = static_cast<int>(chunks.size());

  auto* const device = memory_.view().as<int32_t>();
  const auto append = [&](const int32_t* data, size_t count) {
    const int32_t* at = device + image_.size();
    image_.insert(image_.end(), data, data + count);
    return at;
  };
  batch.chunk = reinterpret_cast<const Chunk*>(
      append(reinterpret_cast<const int32_t*>(chunks.data()), chunks.size() * kChunkInts));
  batch.token_ids = append(ids.data(), ids.size());
  batch.positions = append(positions.data(), positions.size());
  batch.token_chunk = append(token_chunk.data(), token_chunk.size());
  const auto append_rows = [&](const Rows& rows) {
    const size_t n = rows.row.size();
    return HeadRows{.count = static_cast<int>(n),
                    .row = append(rows.row.data(), n),
                    .lane = append(rows.lane.data(), n),
                    .position = append(rows.position.data(), n),
                    .target = append(rows.target.data(), n)};
  };
  out.sampled = append_rows(sampled);
  out.scored = append_rows(scored);
  return out;
}

}  // namespace keyline
