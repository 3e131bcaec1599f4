#include "runtime/pipeline/batch_upload.h"

#include <glog/logging.h>

#include <algorithm>
#include <bit>
#include <utility>

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

bool IsScored(const pipeline::PlanChunk& chunk) {
  return chunk.output() == pipeline::OUTPUT_LOGPROBS || chunk.output() == pipeline::OUTPUT_LOGITS;
}

}  // namespace

size_t BatchUpload::BytesFor(int lanes, int max_tokens, int max_batches) {
  return sizeof(int32_t) *
         (kSharedInts + kChunkInts * lanes * max_batches + (kTokenInts + kHeadInts) * max_tokens);
}

absl::StatusOr<BatchUpload> BatchUpload::Make(Device& device, int lanes, int max_tokens,
                                              int max_batches, int longest_cache) {
  const size_t bytes = BytesFor(lanes, max_tokens, max_batches);
  BatchUpload upload;
  upload.lanes_ = lanes;
  upload.max_tokens_ = max_tokens;
  upload.max_batches_ = max_batches;
  upload.longest_cache_ = longest_cache;
  ASSIGN_OR_RETURN(upload.memory_,
                   Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(bytes)}));
  for (Image& image : upload.images_) {
    ASSIGN_OR_RETURN(image.ints, HostBlock::Allocate(device, bytes));
    image.copied = device.NewEvent();
  }
  upload.lane_batch_.resize(lanes, 0);
  upload.batches_.reserve(max_batches);
  return upload;
}

void BatchUpload::Set(Stream& s, std::span<const pipeline::PlanBatch* const> plans,
                      int32_t first_row, Event* drawn) {
  CHECK_LE(plans.size(), static_cast<size_t>(max_batches_));
  int tokens = 0;
  for (const pipeline::PlanBatch* plan : plans) {
    for (const pipeline::PlanChunk& chunk : plan->chunks()) tokens += chunk.token_ids_size();
  }
  CHECK_LE(tokens, max_tokens_);
  Image& image = images_[std::exchange(next_image_, (next_image_ + 1) % kImages)];
  if (image.free != nullptr) s.WaitFor(*image.free);
  auto* const host = reinterpret_cast<int32_t*>(image.ints.data());
  host[0] = first_row;
  size_t ints = kSharedInts;
  bool draws = false;
  batches_.clear();
  for (const pipeline::PlanBatch* plan : plans) {
    batches_.push_back(Add(*plan, host, ints));
    draws = draws || batches_.back().sampled.count > 0;
  }
  s.CopyPinnedAsync(memory_.view().data, host, ints * sizeof(int32_t));
  // Recording costs as much as the copy, so a decode step does it once.
  image.free = draws && drawn != nullptr ? drawn : image.copied.get();
  if (image.free == image.copied.get()) image.copied->Record(s);
}

// REQUIRES: the image has room for the batch's tokens.
UploadedBatch BatchUpload::Add(const pipeline::PlanBatch& plan, int32_t* image, size_t& ints) {
  int tokens = 0, sampled_rows = 0, scored_rows = 0;
  ++batches_so_far_;
  for (const pipeline::PlanChunk& c : plan.chunks()) {
    CHECK(c.lane() >= 0 && c.lane() < lanes_) << "lane " << c.lane() << " of " << lanes_;
    CHECK_NE(std::exchange(lane_batch_[c.lane()], batches_so_far_), batches_so_far_)
        << "lane " << c.lane() << " twice in one batch";
    CHECK_GT(c.token_ids_size(), 0);
    tokens += c.token_ids_size();
    if (c.output() == pipeline::OUTPUT_SAMPLE) ++sampled_rows;
    if (IsScored(c)) {
      CHECK_EQ(c.targets_size(), c.token_ids_size());
      scored_rows += c.token_ids_size();
    }
  }

  auto* const device = memory_.view().as<int32_t>();
  // The next `count` integers: where they are written, and in `at` where the device finds them.
  const auto take = [&](size_t count, const int32_t*& at) {
    at = device + ints;
    return image + std::exchange(ints, ints + count);
  };
  UploadedBatch out;
  out.first_row = device;
  Batch& batch = out.batch;
  batch.tokens = tokens;
  batch.chunks = plan.chunks_size();
  const int32_t* device_chunks = nullptr;
  auto* chunk = reinterpret_cast<Chunk*>(take(batch.chunks * kChunkInts, device_chunks));
  batch.chunk = reinterpret_cast<const Chunk*>(device_chunks);
  int32_t* id = take(tokens, batch.token_ids);
  int32_t* position = take(tokens, batch.positions);
  int32_t* token_chunk = take(tokens, batch.token_chunk);
  struct Rows {
    int32_t *row, *lane, *position, *target;
    void Add(int32_t r, int32_t l, int32_t p, int32_t t) {
      *row++ = r;
      *lane++ = l;
      *position++ = p;
      *target++ = t;
    }
  };
  const auto take_rows = [&](int count, HeadRows& rows) {
    rows.count = count;
    return Rows{.row = take(count, rows.row),
                .lane = take(count, rows.lane),
                .position = take(count, rows.position),
                .target = take(count, rows.target)};
  };
  Rows sampled = take_rows(sampled_rows, out.sampled);
  Rows scored = take_rows(scored_rows, out.scored);

  int32_t first = 0;
  int64_t slots = 0;
  for (int index = 0; index < batch.chunks; ++index) {
    const pipeline::PlanChunk& c = plan.chunks(index);
    const int32_t count = c.token_ids_size();
    *chunk++ = {.lane = c.lane(),
                .first_token = first,
                .tokens = count,
                .first_position = c.first_position(),
                .takes_mass = c.takes_mass() ? 1 : 0,
                .chunk_tokens = c.chunk_tokens(),
                .chunk_position = c.chunk_position()};
    for (int i = 0; i < count; ++i) {
      *id++ = c.token_is_drawn() ? kDrawnToken : static_cast<int32_t>(c.token_ids(i));
      *position++ = c.first_position() + i;
      *token_chunk++ = index;
      if (IsScored(c)) scored.Add(first + i, c.lane(), c.first_position() + i + 1, c.targets(i));
    }
    first += count;
    slots += std::min(int64_t{c.first_position()} + count, longest_cache_);
    if (c.output() == pipeline::OUTPUT_SAMPLE) {
      sampled.Add(first - 1, c.lane(), c.first_position() + count, -1);
    }
    batch.max_chunk_tokens = std::max(batch.max_chunk_tokens, count);
  }
  // Rounded up, as passes that differ by it are recorded one by one.
  constexpr uint64_t kFewSlots = 1 << 14;
  batch.max_slots =
      static_cast<int64_t>(std::bit_ceil(std::max(static_cast<uint64_t>(slots), kFewSlots)));
  return out;
}

}  // namespace keyline
