// The choices, moves and scores of other devices against the CPU's, to the slot and the bit, for
// tables of every kind of score. What the CPU chooses is held to the design and the oracle by
// policy_trace_test and attend_test.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "kernels/ops/cache_ops.h"
#include "runtime/cache/kv_storage.h"
#include "tests/runtime/cache/cache_driver.h"

namespace keyline {
namespace {

constexpr int kLanes = 5;
constexpr int kPolicy = 1;

struct TableCase {
  int heads;
  int length;
  int sinks;
  int grace;
  int tokens;  // of the chunks of lanes that are full
  bool normalize;
  ScoreRule rule;
  bool few_scores;  // many are equal, some not finite

  int slots() const { return (length + kSlotPadding - 1) / kSlotPadding * kSlotPadding; }
  size_t slots_of_all() const { return size_t(kLanes) * heads * slots(); }
};

void PrintTo(const TableCase& c, std::ostream* out) {
  *out << c.heads << " heads, length " << c.length << ", sinks " << c.sinks << ", grace " << c.grace
       << ", tokens " << c.tokens << (c.normalize ? ", normalised" : "")
       << (c.rule.errors ? ", errors" : "") << (c.few_scores ? ", few scores" : "");
}

// Lane 0 is full and scored, lane 1 full and not scored, lane 2 fills up, lane 3 has another
// policy, lane 4 is as lane 0.
struct HostTable {
  // single: all chunks are of one token.
  explicit HostTable(const TableCase& c, bool single = false) : c(c), random(c.length + c.tokens) {
    for (int lane = 0; lane < kLanes; ++lane) {
      LaneRules lane_rules;
      lane_rules.policy = lane == 3 ? 0 : kPolicy;
      lane_rules.length = c.length;
      lane_rules.sinks = lane_rules.protect_begin = lane_rules.protect_end = c.sinks;
      lane_rules.grace = c.grace;
      lane_rules.keep_initial = c.length / 20;
      lane_rules.normalize = c.normalize;
      lane_rules.wants_mass = 1;
      rules.push_back(lane_rules);
      const int tokens = lane == 2 ? c.length / 2 : 2 * c.length + 17;
      progress.push_back({.tokens = tokens,
                          .first_chunk = lane == 2 ? tokens : c.length,
                          .scored = lane != 1,
                          .ring_next = c.grace > 0 ? c.grace / 3 : 0});
    }
    const auto any_score = [&] {
      const float few[] = {0.0f,   -0.0f,     0.5f,  0.5f,
                           1e-40f, HUGE_VALF, -3.0f, std::numeric_limits<float>::quiet_NaN()};
      return c.few_scores ? few[random() % 8] : std::generate_canonical<float, 24>(random) * 9;
    };
    std::vector<int32_t> order(c.length);
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int head = 0; head < c.heads; ++head) {
        const int tokens = progress[lane].tokens;
        for (int j = 0; j < c.length; ++j) order[j] = tokens - 1 - j;
        std::shuffle(order.begin(), order.end(), random);
        for (int j = 0; j < c.slots(); ++j) {
          const bool used = j < std::min(c.length, tokens);
          slot_pos.push_back(used ? order[j] : -1);
          scores.push_back(used ? any_score() : 0);
          norms.push_back(used ? std::generate_canonical<float, 24>(random) : 0);
          errors.push_back(used ? std::generate_canonical<float, 24>(random) : 0);
          mass.push_back(std::generate_canonical<float, 24>(random));
        }
      }
    }
    for (int lane : {4, 3, 0, 2, 1}) {
      const int n = single ? 1 : lane == 2 ? std::max(1, c.length / 4) : c.tokens;
      chunks.push_back({.lane = lane,
                        .first_token = batch.tokens,
                        .tokens = n,
                        .first_position = progress[lane].tokens,
                        .takes_mass = lane != 1,
                        .chunk_tokens = n,
                        .chunk_position = progress[lane].tokens});
      for (int i = 0; i < n; ++i) token_chunk.push_back(batch.chunks);
      batch.tokens += n;
      batch.chunks += 1;
      batch.max_chunk_tokens = std::max(batch.max_chunk_tokens, n);
    }
  }

  TableCase c;
  std::mt19937 random;
  std::vector<LaneRules> rules;
  std::vector<LaneProgress> progress;
  std::vector<int32_t> slot_pos;
  std::vector<float> scores, norms, errors, mass;
  std::vector<Chunk> chunks;
  std::vector<int32_t> token_chunk;
  Batch batch;
};

// The table on one device, and what an operation leaves there.
class Side {
 public:
  Side(const DeviceUnderTest& device, const HostTable& host) : host_(host), bench_(device) {
    table_ = {.lanes = kLanes,
              .kv_heads = host.c.heads,
              .slots = host.c.slots(),
              .rules = bench_.Array(host.rules),
              .progress = bench_.Array(host.progress),
              .slot_pos = bench_.Array(host.slot_pos),
              .scores = bench_.Array(host.scores),
              .value_norms = bench_.Array(host.norms),
              .errors = bench_.Array(host.errors)};
    batch_ = host.batch;
    batch_.chunk = bench_.Array(host.chunks);
    batch_.token_chunk = bench_.Array(host.token_chunk);
    const std::vector<int32_t> none(pairs(), -7);
    placement_ = {bench_.Array(none), bench_.Array(none), bench_.Array(none)};
  }

  // slots, moved_from, moved_to.
  std::vector<std::vector<int32_t>> Place() {
    ops::PlaceByScore(bench_.stream(), placement_, batch_, table_, kPolicy, host_.c.rule);
    return {bench_.Read(placement_.slots, pairs()), bench_.Read(placement_.moved_from, pairs()),
            bench_.Read(placement_.moved_to, pairs())};
  }

  std::vector<std::vector<int32_t>> PlaceInRing() {
    ops::PlaceInRing(bench_.stream(), placement_, batch_, table_, kPolicy);
    return {bench_.Read(placement_.slots, pairs()), bench_.Read(placement_.moved_from, pairs())};
  }

  std::vector<float> AddScores(const ScoreRule& rule) {
    ops::AddScores(bench_.stream(), table_, bench_.Array(host_.mass), batch_, kPolicy, rule);
    return bench_.Read(table_.scores, host_.c.slots_of_all());
  }

  // tokens, first_chunk, scored and ring_next of each lane.
  std::vector<int32_t> Advance() {
    ops::AdvanceLanes(bench_.stream(), table_, batch_);
    std::vector<int32_t> out;
    for (const LaneProgress& p : bench_.Read(table_.progress, kLanes)) {
      out.insert(out.end(), {p.tokens, p.first_chunk, p.scored, p.ring_next});
    }
    return out;
  }

  // K and V of made-up bytes in all slots of every lane.
  KvStorage Store(const StorageFormats& formats, int head_dim) {
    KvStorage storage = *KvStorage::Create(bench_.device(), formats, kLanes, host_.c.heads,
                                           head_dim, host_.c.slots());
    const KvMemory& kv = storage.memory();
    const size_t bytes = ops::PackedLaneBytes(kv, host_.c.slots());
    std::mt19937 random(5);
    for (int lane = 0; lane < kLanes; ++lane) {
      std::vector<uint8_t> packed(bytes);
      for (uint8_t& b : packed) b = static_cast<uint8_t>(random());
      ops::UnpackLane(bench_.stream(), kv, lane, host_.c.slots(),
                      reinterpret_cast<const std::byte*>(bench_.Array(packed)));
    }
    bench_.stream().Synchronize();
    return storage;
  }

  // The operations of a pass that put tokens into their places, one by one.
  void PlaceAndMove(const KvMemory& kv) {
    ops::PlaceByScore(bench_.stream(), placement_, batch_, table_, kPolicy, host_.c.rule);
    ops::PlaceInRing(bench_.stream(), placement_, batch_, table_, 0);  // of lane 3: no moves
    ops::MoveSlots(bench_.stream(), kv, table_, placement_, batch_);
  }

  // The same of all these layers in one operation.
  bool PlaceDecode(std::vector<PlacedCache> layers) {
    const PolicyRule policies[] = {{}, {.by_score = true, .score = host_.c.rule}};
    const bool done = ops::PlaceDecode(bench_.stream(), layers, batch_, policies);
    bench_.stream().Synchronize();
    return done;
  }
  PlacedCache Layer(const KvMemory& kv) const { return {kv, table_, placement_}; }

  // Where the tokens go, and the moves, -1 twice for none.
  std::vector<int32_t> Places() {
    std::vector<int32_t> out = bench_.Read(placement_.slots, pairs());
    const std::vector<int32_t> from = bench_.Read(placement_.moved_from, pairs());
    const std::vector<int32_t> to = bench_.Read(placement_.moved_to, pairs());
    for (size_t i = 0; i < pairs(); ++i) {
      out.insert(out.end(), {from[i], from[i] < 0 ? -1 : to[i]});
    }
    return out;
  }

  // The lanes' bytes, then positions and the bits of scores, norms and errors.
  std::vector<uint8_t> Contents(const KvMemory& kv) {
    const size_t bytes = ops::PackedLaneBytes(kv, host_.c.slots());
    std::vector<uint8_t> out;
    for (int lane = 0; lane < kLanes; ++lane) {
      auto* packed = bench_.Array(std::vector<uint8_t>(bytes));
      ops::PackLane(bench_.stream(), reinterpret_cast<std::byte*>(packed), kv, lane,
                    host_.c.slots());
      const std::vector<uint8_t> read = bench_.Read(packed, bytes);
      out.insert(out.end(), read.begin(), read.end());
    }
    for (const void* array :
         {static_cast<void*>(table_.slot_pos), static_cast<void*>(table_.scores),
          static_cast<void*>(table_.value_norms), static_cast<void*>(table_.errors)}) {
      const auto read =
          bench_.Read(static_cast<const uint8_t*>(array), host_.c.slots_of_all() * sizeof(float));
      out.insert(out.end(), read.begin(), read.end());
    }
    return out;
  }

 private:
  size_t pairs() const { return size_t(batch_.tokens) * host_.c.heads; }

  const HostTable& host_;
  Workbench bench_;
  SlotTable table_;
  Batch batch_;
  Placement placement_;
};

class PlaceSlots : public testing::TestWithParam<std::tuple<TableCase, DeviceUnderTest>> {
 protected:
  void SetUp() override { SKIP_UNLESS_OPENS(std::get<1>(GetParam())); }
};

TEST_P(PlaceSlots, EqualsTheCpu) {
  const auto& [c, device] = GetParam();
  const HostTable host(c);
  Side cpu(DefaultCpu(), host), other(device, host);
  EXPECT_EQ(other.Place(), cpu.Place());
  EXPECT_EQ(other.Advance(), cpu.Advance());
  if (c.grace == 0) {
    EXPECT_EQ(other.PlaceInRing(), cpu.PlaceInRing());
  }
}

TEST_P(PlaceSlots, MovesCarryEverything) {
  const auto& [c, device] = GetParam();
  if (c.length > 1000) GTEST_SKIP() << "a short lane will do";
  const HostTable host(c);
  for (const auto& [formats, dim] :
       {std::pair{StorageFormats{KvFormat::kInt8, KvFormat::kInt4}, 48},
        std::pair{StorageFormats{KvFormat::kF32, KvFormat::kBF16}, 7},
        std::pair{StorageFormats{KvFormat::kInt4, KvFormat::kInt8}, 80},
        std::pair{StorageFormats{KvFormat::kInt8, KvFormat::kF16}, 31}}) {
    Side cpu(DefaultCpu(), host), other(device, host);
    const KvStorage of_cpu = cpu.Store(formats, dim), of_other = other.Store(formats, dim);
    cpu.PlaceAndMove(of_cpu.memory());
    other.PlaceAndMove(of_other.memory());
    EXPECT_EQ(other.Contents(of_other.memory()), cpu.Contents(of_cpu.memory())) << dim;
  }
}

TEST_P(PlaceSlots, LayersOfOneTokenChunksTogetherAsOneByOne) {
  const auto& [c, device] = GetParam();
  const StorageFormats formats{KvFormat::kInt8, KvFormat::kInt4};
  constexpr int kDim = 48;
  TableCase ring = c;  // the other layer
  ring.grace = c.grace > 0 ? 0 : c.length / 3;
  ring.normalize = !c.normalize;
  const HostTable host(c, /*single=*/true), host_ring(ring, /*single=*/true);
  Side first(device, host), second(device, host_ring);
  const KvStorage of_first = first.Store(formats, kDim), of_second = second.Store(formats, kDim);
  const bool done =
      first.PlaceDecode({first.Layer(of_first.memory()), second.Layer(of_second.memory())});
  EXPECT_EQ(done, !c.rule.errors && !c.rule.shared);
  if (!done) return;
  for (const auto& [table, side, storage] :
       {std::tuple{&host, &first, &of_first}, std::tuple{&host_ring, &second, &of_second}}) {
    Side cpu(DefaultCpu(), *table);
    const KvStorage of_cpu = cpu.Store(formats, kDim);
    cpu.PlaceAndMove(of_cpu.memory());
    EXPECT_EQ(side->Places(), cpu.Places());
    EXPECT_TRUE(side->Contents(storage->memory()) == cpu.Contents(of_cpu.memory()));
  }
}

TEST_P(PlaceSlots, ScoresGrowAsOnTheCpu) {
  const auto& [c, device] = GetParam();
  if (c.few_scores) GTEST_SKIP() << "its scores are not numbers";
  const HostTable host(c);
  for (const ScoreRule& rule :
       {ScoreRule{}, ScoreRule{.value_norms = true}, ScoreRule{.shared = true}}) {
    Side cpu(DefaultCpu(), host), other(device, host);
    const std::vector<float> want = cpu.AddScores(rule);
    const std::vector<float> got = other.AddScores(rule);
    for (size_t i = 0; i < want.size(); ++i) {
      // One sum over a row has another order.
      ASSERT_NEAR(got[i], want[i], rule.value_norms ? 1e-5 * std::fabs(want[i]) : 0) << i;
    }
  }
}

std::vector<std::tuple<TableCase, DeviceUnderTest>> Cases() {
  const ScoreRule plain, errors{.errors = true};
  std::vector<std::tuple<TableCase, DeviceUnderTest>> cases;
  for (const DeviceUnderTest& device : ExactDevices()) {
    if (!device.cuda) continue;
    for (const TableCase& c : {TableCase{1, 8, 0, 0, 1, false, plain, false},
                               TableCase{2, 40, 4, 11, 1, true, plain, false},
                               TableCase{3, 40, 2, 5, 33, true, plain, true},
                               TableCase{2, 65, 0, 20, 30, false, plain, false},
                               TableCase{2, 65, 3, 20, 2, true, errors, false},
                               TableCase{4, 200, 3, 50, 40, true, errors, false},
                               TableCase{4, 200, 0, 0, 1, false, errors, false},
                               TableCase{2, 200, 3, 50, 147, false, errors, true},
                               TableCase{3, 700, 1, 100, 1, true, plain, true},
                               TableCase{3, 700, 1, 100, 512, false, plain, true},
                               TableCase{8, 4100, 4, 1025, 2048, true, plain, false},
                               TableCase{2, 9001, 4, 100, 5000, true, plain, true},
                               TableCase{2, 9001, 4, 100, 5000, false, errors, false},
                               TableCase{3, 9001, 4, 0, 2048, false, plain, true},
                               TableCase{2, 4200, 4, 104, 4092, false, plain, true},
                               TableCase{2, 70000, 4, 16384, 777, true, plain, false},
                               TableCase{1, 70000, 0, 0, 1, false, plain, true}}) {
      cases.emplace_back(c, device);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(cuda, PlaceSlots, testing::ValuesIn(Cases()));
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(PlaceSlots);

}  // namespace
}  // namespace keyline
