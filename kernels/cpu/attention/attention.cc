// Attention over the slots of a cache, for a packed batch of chunks.
//
// A unit of work is a block of up to 48 query rows (tokens x heads of one KV head) against segments
// of 256 slots (attention_kernels.h). A chunk of one block, above all a decode step, is cut into
// its segments as well, so that few heads and lanes still fill all threads; their parts are then
// merged. A larger chunk keeps each block on one thread, which merges as it goes. Either way the
// same operations give each number, so results do not depend on the cut.
//
// Mass: a chunk of one token keeps its row of weights, [heads, slots]; a larger one computes its
// logits a second time, a segment at a time, once the sums over all slots are known.
#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/cpu/attention/attention_kernels.h"
#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cache/kv_layout.h"
#include "kernels/cpu/cpu_device.h"

namespace keyline::cpu {
namespace {

// From this many rows on it pays to turn a segment into float32 first.
constexpr int kWidenRows = 12;
// Loops of fewer multiply-adds than this are not worth their barrier.
constexpr int64_t kSerialWork = 1 << 16;

// What one chunk asks for, and where its share of the scratch memory lies.
struct ChunkWork {
  const Chunk* chunk = nullptr;
  int used = 0;  // slots of its lane in use
  int segments = 0;
  int rows = 0;  // tokens x query heads of a KV head
  int blocks = 0;
  bool mass = false;
  bool split = false;        // its segments are tasks of their own
  float* parts = nullptr;    // split: [kv_heads, segments] x {m [rows], l [rows], o [rows, padded]}
  float* weights = nullptr;  // mass of one token: [kv_heads, rows, slots]
  float* sums = nullptr;     // mass of more: [kv_heads] x {m [rows], factor [rows]}
};

struct Task {
  int work = 0;
  int head = 0;
  int block = 0;
  int segment = 0;
};

// Working memory of one thread.
struct ThreadMemory {
  std::vector<float> weights = std::vector<float>(kMaxQueryRows * kSegmentSlots);
  std::vector<float> segment_o;
  std::vector<float> o;
  std::vector<float> k;
  std::vector<float> v;
  const float* q[kMaxQueryRows];
  int32_t positions[kMaxQueryRows];
  float m[kMaxQueryRows];
  float l[kMaxQueryRows];
  float segment_m[kMaxQueryRows];
  float segment_l[kMaxQueryRows];

  void Fit(int head_dim, int padded) {
    segment_o.resize(size_t{kMaxQueryRows} * padded);
    o.resize(size_t{kMaxQueryRows} * padded);
    k.resize(size_t{kSegmentSlots} * head_dim);
    v.resize(size_t{kSegmentSlots} * padded);
  }
};

class Pass {
 public:
  Pass(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
       const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec)
      : stream_(AsCpu(s)),
        kernels_(AttentionKernelsFor(stream_.kernels().name)),
        out_(out),
        mass_(mass),
        qkv_(qkv),
        batch_(batch),
        kv_(kv),
        table_(table),
        k_layout_(kv.k_format, kv.head_dim),
        v_layout_(kv.v_format, kv.head_dim),
        rule_{spec.scale, spec.softcap, spec.window},
        group_(spec.heads / spec.kv_heads),
        padded_((kv.head_dim + 15) / 16 * 16) {
    LayOut();
  }

  void Run() {
    static thread_local std::vector<Task> tasks;
    tasks.clear();
    int64_t work = 0;
    int most_blocks = 0;
    for (int i = 0; i < batch_.chunks; ++i) most_blocks = std::max(most_blocks, works_[i].blocks);
    // The last blocks of a chunk see most, so they come first.
    for (int block = most_blocks - 1; block >= 0; --block) {
      for (int i = 0; i < batch_.chunks; ++i) {
        const ChunkWork& w = works_[i];
        if (block >= w.blocks) continue;
        work += int64_t{2} * kv_.kv_heads * w.rows * w.used * padded_ / w.blocks;
        for (int head = 0; head < kv_.kv_heads; ++head) {
          for (int segment = 0; segment < (w.split ? w.segments : 1); ++segment) {
            tasks.push_back({i, head, block, segment});
          }
        }
      }
    }
    ForEach(tasks, work, [this](const Task& t) {
      if (works_[t.work].split) {
        AttendPart(works_[t.work], t.head, t.segment);
      } else {
        AttendBlock(works_[t.work], t.head, t.block);
      }
    });

    tasks.clear();
    work = 0;
    for (int i = 0; i < batch_.chunks; ++i) {
      const ChunkWork& w = works_[i];
      if (!w.split) continue;
      const int64_t slots = w.weights != nullptr ? w.used : 0;
      work += int64_t{kv_.kv_heads} * w.rows * (w.segments * padded_ + slots);
      for (int head = 0; head < kv_.kv_heads; ++head) tasks.push_back({i, head, 0, 0});
    }
    ForEach(tasks, work, [this](const Task& t) { MergeParts(works_[t.work], t.work, t.head); });

    tasks.clear();
    work = 0;
    for (int i = 0; i < batch_.chunks; ++i) {
      const ChunkWork& w = works_[i];
      if (w.sums == nullptr) continue;
      work += int64_t{kv_.kv_heads} * w.rows * w.used * padded_;
      for (int segment = 0; segment < w.segments; ++segment) {
        for (int head = 0; head < kv_.kv_heads; ++head) tasks.push_back({i, head, 0, segment});
      }
    }
    ForEach(tasks, work,
            [this](const Task& t) { TakeMass(works_[t.work], t.work, t.head, t.segment); });
  }

 private:
  // Sizes up the chunks and deals out the scratch memory.
  void LayOut() {
    static thread_local std::vector<ChunkWork> works;
    works.assign(batch_.chunks, {});
    works_ = works.data();
    int64_t floats = 0;
    const auto take = [&](int64_t count) { return std::exchange(floats, floats + count); };
    std::vector<int64_t> offsets;
    for (int i = 0; i < batch_.chunks; ++i) {
      ChunkWork& w = works_[i];
      w.chunk = &batch_.chunk[i];
      const LaneRules& rules = table_.rules[w.chunk->lane];
      CHECK_GE(rules.policy, 0) << "lane " << w.chunk->lane << " is closed";
      w.used = std::min(rules.length, w.chunk->first_position + w.chunk->tokens);
      w.segments = (w.used + kSegmentSlots - 1) / kSegmentSlots;
      w.rows = w.chunk->tokens * group_;
      w.blocks = (w.rows + kMaxQueryRows - 1) / kMaxQueryRows;
      w.mass = mass_ != nullptr && w.chunk->takes_mass && rules.wants_mass;
      w.split = w.blocks == 1;
      offsets.push_back(w.split ? take(kv_.kv_heads * w.segments * PartFloats(w)) : -1);
      const bool keep = w.mass && w.split && w.chunk->tokens == 1;
      offsets.push_back(keep ? take(int64_t{kv_.kv_heads} * w.rows * table_.slots) : -1);
      offsets.push_back(w.mass && !keep ? take(int64_t{kv_.kv_heads} * 2 * w.rows) : -1);
    }
    auto* scratch = static_cast<float*>(stream_.Scratch(floats * sizeof(float)));
    const auto at = [&](int64_t offset) { return offset < 0 ? nullptr : scratch + offset; };
    for (int i = 0; i < batch_.chunks; ++i) {
      works_[i].parts = at(offsets[3 * i]);
      works_[i].weights = at(offsets[3 * i + 1]);
      works_[i].sums = at(offsets[3 * i + 2]);
    }
  }

  int64_t PartFloats(const ChunkWork& w) const { return int64_t{w.rows} * (2 + padded_); }
  float* Part(const ChunkWork& w, int head, int segment) const {
    return w.parts + (int64_t{head} * w.segments + segment) * PartFloats(w);
  }

  template <class Body>
  void ForEach(const std::vector<Task>& tasks, int64_t work, const Body& body) {
    const Task* task = tasks.data();
    const auto range = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(task[i]);
    };
    const auto count = static_cast<int64_t>(tasks.size());
    if (work <= kSerialWork) {
      range(0, count);
    } else {
      stream_.pool().ParallelFor(count, range);
    }
  }

  ThreadMemory& Memory() const {
    static thread_local ThreadMemory memory;
    memory.Fit(kv_.head_dim, padded_);
    return memory;
  }

  // Query rows [first, first + count) of a chunk and KV head; row = token x group + head in group.
  int LoadQueries(const ChunkWork& w, int head, int first, ThreadMemory& memory) const {
    const int count = std::min(w.rows - first, kMaxQueryRows);
    for (int r = 0; r < count; ++r) {
      const int64_t token = w.chunk->first_token + (first + r) / group_;
      const int64_t column = int64_t{head} * group_ + (first + r) % group_;
      memory.q[r] = qkv_.row<float>(token) + column * kv_.head_dim;
      memory.positions[r] = batch_.positions[token];
    }
    return count;
  }

  float* OutRow(const ChunkWork& w, int head, int row) const {
    const int64_t token = w.chunk->first_token + row / group_;
    return out_.row<float>(token) + (int64_t{head} * group_ + row % group_) * kv_.head_dim;
  }

  // K and V of a segment, as float32 if many rows will read it. `values`: V is needed too.
  SegmentMemory Segment(const ChunkWork& w, int head, int segment, int rows, bool values,
                        ThreadMemory& memory) const {
    const int64_t row = int64_t{w.chunk->lane} * table_.kv_heads + head;
    const int64_t slot = row * table_.slots + segment * kSegmentSlots;
    SegmentMemory m{.k_format = kv_.k_format,
                    .v_format = kv_.v_format,
                    .head_dim = kv_.head_dim,
                    .k = kv_.k + slot * k_layout_.row_bytes,
                    .k_tile_bytes = static_cast<int64_t>(kTileSlots * k_layout_.row_bytes),
                    .k_scales = static_cast<int64_t>(k_layout_.tile_scales()),
                    .v = kv_.v + slot * v_layout_.row_bytes,
                    .v_row_bytes = static_cast<int64_t>(v_layout_.row_bytes),
                    .v_scales = static_cast<int64_t>(v_layout_.codes_bytes),
                    .positions = table_.slot_pos + slot,
                    .slots = std::min(kSegmentSlots, w.used - segment * kSegmentSlots)};
    if (rows < kWidenRows) return m;
    SegmentMemory wide = m;
    if (m.k_format != KvFormat::kF32) {
      kernels_.widen_k(m, memory.k.data());
      wide.k_format = KvFormat::kF32;
      wide.k = reinterpret_cast<const std::byte*>(memory.k.data());
      wide.k_tile_bytes = int64_t{kTileSlots} * kv_.head_dim * sizeof(float);
    }
    if (values && m.v_format != KvFormat::kF32) {
      kernels_.widen_v(m, memory.v.data());
      wide.v_format = KvFormat::kF32;
      wide.v = reinterpret_cast<const std::byte*>(memory.v.data());
      wide.v_row_bytes = int64_t{padded_} * sizeof(float);
    }
    return wide;
  }

  // All rows of a chunk against one segment.
  void AttendPart(const ChunkWork& w, int head, int segment) {
    ThreadMemory& memory = Memory();
    LoadQueries(w, head, 0, memory);
    float* part = Part(w, head, segment);
    const bool keep = w.weights != nullptr;
    kernels_.attend_segment({.memory = Segment(w, head, segment, w.rows, true, memory),
                             .rule = rule_,
                             .rows = w.rows,
                             .q = memory.q,
                             .q_positions = memory.positions,
                             .weights = keep ? w.weights + int64_t{head} * w.rows * table_.slots +
                                                   segment * kSegmentSlots
                                             : memory.weights.data(),
                             .weights_stride = keep ? table_.slots : kSegmentSlots,
                             .fill = keep,
                             .m = part,
                             .l = part + w.rows,
                             .o = part + 2 * w.rows,
                             .o_stride = padded_});
  }

  void MergeParts(const ChunkWork& w, int work, int head) {
    ThreadMemory& memory = Memory();
    for (int r = 0; r < w.rows; ++r) {
      float& m = memory.m[r] = -HUGE_VALF;
      float& l = memory.l[r] = 0;
      for (int segment = 0; segment < w.segments; ++segment) {
        const float* part = Part(w, head, segment);
        kernels_.merge(&m, &l, memory.o.data(), part[r], part[w.rows + r],
                       part + 2 * w.rows + int64_t{r} * padded_, kv_.head_dim);
      }
      kernels_.finish(OutRow(w, head, r), memory.o.data(), l, kv_.head_dim);
      KeepSums(w, head, r, m, l);
    }
    if (w.weights == nullptr) return;
    const float* weights = w.weights + int64_t{head} * w.rows * table_.slots;
    for (int segment = 0; segment < w.segments; ++segment) {
      const float* segment_m = Part(w, head, segment);
      float factor[kMaxQueryRows];
      for (int r = 0; r < w.rows; ++r) {
        factor[r] = segment_m[r] == -HUGE_VALF ? 0.0f
                                               : kernels_.exp(segment_m[r] - memory.m[r]) /
                                                     (memory.l[r] * static_cast<float>(group_));
      }
      const int first = segment * kSegmentSlots;
      kernels_.sum_weights(MassRow(work, head) + first, weights + first, table_.slots, factor,
                           w.rows, std::min(kSegmentSlots, w.used - first));
    }
  }

  // One block of a chunk against all segments.
  void AttendBlock(const ChunkWork& w, int head, int block) {
    ThreadMemory& memory = Memory();
    const int first = block * kMaxQueryRows;
    const int rows = LoadQueries(w, head, first, memory);
    std::fill_n(memory.m, rows, -HUGE_VALF);
    std::fill_n(memory.l, rows, 0.0f);
    for (int segment = 0; segment < w.segments; ++segment) {
      kernels_.attend_segment({.memory = Segment(w, head, segment, rows, true, memory),
                               .rule = rule_,
                               .rows = rows,
                               .q = memory.q,
                               .q_positions = memory.positions,
                               .weights = memory.weights.data(),
                               .weights_stride = kSegmentSlots,
                               .m = memory.segment_m,
                               .l = memory.segment_l,
                               .o = memory.segment_o.data(),
                               .o_stride = padded_});
      for (int r = 0; r < rows; ++r) {
        const int64_t at = int64_t{r} * padded_;
        kernels_.merge(&memory.m[r], &memory.l[r], memory.o.data() + at, memory.segment_m[r],
                       memory.segment_l[r], memory.segment_o.data() + at, kv_.head_dim);
      }
    }
    for (int r = 0; r < rows; ++r) {
      kernels_.finish(OutRow(w, head, first + r), memory.o.data() + int64_t{r} * padded_,
                      memory.l[r], kv_.head_dim);
      KeepSums(w, head, first + r, memory.m[r], memory.l[r]);
    }
  }

  void KeepSums(const ChunkWork& w, int head, int row, float m, float l) const {
    if (w.sums == nullptr) return;
    float* sums = w.sums + int64_t{head} * 2 * w.rows;
    sums[row] = m;
    sums[w.rows + row] = l == 0 ? 0.0f : 1.0f / (l * static_cast<float>(group_));
  }

  float* MassRow(int work, int head) const {
    return mass_ + (int64_t{work} * table_.kv_heads + head) * table_.slots;
  }

  // What one segment receives from all rows of a chunk.
  void TakeMass(const ChunkWork& w, int work, int head, int segment) {
    ThreadMemory& memory = Memory();
    const SegmentMemory m = Segment(w, head, segment, w.rows, false, memory);
    float mass[kSegmentSlots] = {};
    const float* sums = w.sums + int64_t{head} * 2 * w.rows;
    for (int first = 0; first < w.rows; first += kMaxQueryRows) {
      const int rows = LoadQueries(w, head, first, memory);
      kernels_.add_mass({.memory = m,
                         .rule = rule_,
                         .rows = rows,
                         .q = memory.q,
                         .q_positions = memory.positions,
                         .m = sums + first,
                         .factor = sums + w.rows + first,
                         .weights = memory.weights.data(),
                         .mass = mass});
    }
    std::copy_n(mass, m.slots, MassRow(work, head) + segment * kSegmentSlots);
  }

  CpuStream& stream_;
  const AttentionKernels& kernels_;
  TensorView out_;
  float* mass_;
  TensorView qkv_;
  const Batch& batch_;
  const KvMemory& kv_;
  const SlotTable& table_;
  RowLayout k_layout_;
  RowLayout v_layout_;
  LogitRule rule_;
  int group_;
  int padded_;
  ChunkWork* works_ = nullptr;
};

}  // namespace

// As Pass::LayOut takes it: split chunks have at most kMaxQueryRows rows.
size_t AttentionScratch(const PassShape& shape) {
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t segments = (shape.slots + kSegmentSlots - 1) / kSegmentSlots;
  const int64_t padded = (shape.head_dim + 15) / 16 * 16;
  const int64_t split_rows =
      std::min(int64_t{shape.chunks} * kMaxQueryRows, shape.tokens * group) * shape.kv_heads;
  const int64_t weights = int64_t{shape.chunks} * shape.heads * shape.slots;
  const int64_t sums = int64_t{2} * shape.tokens * shape.heads;
  return (split_rows * segments * (2 + padded) + weights + sums) * sizeof(float);
}

void Attention(Stream& s, TensorView out, float* mass, TensorView qkv, const Batch& batch,
               const KvMemory& kv, const SlotTable& table, const AttentionSpec& spec) {
  Pass(s, out, mass, qkv, batch, kv, table, spec).Run();
}

}  // namespace keyline::cpu
