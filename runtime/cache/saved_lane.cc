// A lane as bytes: SavedHeader, the policy's name, then per KV head and slot in use positions, and
// scores, norms and errors where the policy has them, then K and V as ops::PackLane gives them.
// Numbers are little-endian. Nothing says how many ranks there were: each layer is saved by itself.
#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/cache_ops.h"
#include "runtime/cache/kv_cache_state.h"

namespace keyline {
namespace {

constexpr char kMagic[8] = {'K', 'V', 'L', 'A', 'N', 'E', '0', '1'};  // ends in the version

struct SavedHeader {
  char magic[8];
  int32_t kv_heads;
  int32_t head_dim;
  int32_t k_format;
  int32_t v_format;
  int32_t used;  // slots per KV head that hold a token
  int32_t name_bytes;
  LaneRules rules;  // `policy` is 0: the name says it
  LaneProgress progress;
};

template <class T>
void Append(std::string& bytes, const T* from, size_t count) {
  bytes.append(reinterpret_cast<const char*>(from), count * sizeof(T));
}

// Takes the next `count` of T from the front; the caller has checked that they are there.
template <class T>
std::vector<T> Take(std::string_view& bytes, size_t count) {
  std::vector<T> taken(count);
  if (count > 0) std::memcpy(taken.data(), bytes.data(), count * sizeof(T));
  bytes.remove_prefix(count * sizeof(T));
  return taken;
}

absl::Status Torn(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("saved lane: ", what));
}

absl::Status Mismatch(const char* field, int saved, int here) {
  return absl::FailedPreconditionError(
      absl::StrCat("saved lane has ", field, " ", saved, ", this cache ", here));
}

// Rules and progress that no sequence could have reached would have kernels write where they must
// not.
bool Plausible(const SavedHeader& h) {
  const LaneRules& r = h.rules;
  const LaneProgress& p = h.progress;
  const auto flag = [](int32_t x) { return x == 0 || x == 1; };
  return r.length >= 1 && r.sinks >= 0 && r.sinks <= r.protect_begin &&
         r.protect_begin <= r.protect_end && r.protect_end <= r.length && r.grace >= 0 &&
         r.grace < r.length && r.sinks < r.length - r.grace &&
         r.protect_end - r.protect_begin + r.sinks < r.length && r.keep_initial >= 0 &&
         r.keep_initial <= r.length && flag(r.normalize) && flag(r.wants_mass) && p.tokens >= 0 &&
         p.first_chunk >= 0 && p.first_chunk <= p.tokens && flag(p.scored) && p.ring_next >= 0 &&
         p.ring_next < std::max(r.grace, 1) && h.used == std::min(p.tokens, r.length);
}

// Positions of one head: each a token processed, none twice.
bool PlausiblePositions(std::vector<int32_t> positions, int tokens) {
  std::sort(positions.begin(), positions.end());
  return positions.empty() ||
         (positions.front() >= 0 && positions.back() < tokens &&
          std::adjacent_find(positions.begin(), positions.end()) == positions.end());
}

}  // namespace

absl::StatusOr<std::string> KvCache::SaveLane(Stream& s, int lane) const {
  const State& state = *state_;
  CHECK(lane >= 0 && lane < state.shape.lanes) << "lane " << lane << " of " << state.shape.lanes;
  const LaneRules& rules = state.lane_rules[lane];
  CHECK_GE(rules.policy, 0) << "lane " << lane << " is closed";
  const EvictionPolicy& policy = *state.policies[rules.policy];
  const KvMemory& kv = state.storage.memory();

  SavedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.kv_heads = kv.kv_heads;
  header.head_dim = kv.head_dim;
  header.k_format = static_cast<int32_t>(kv.k_format);
  header.v_format = static_cast<int32_t>(kv.v_format);
  header.rules = rules;
  header.rules.policy = 0;
  header.progress = state.Progress(s, lane);
  header.used = std::min(header.progress.tokens, rules.length);
  header.name_bytes = static_cast<int32_t>(policy.name().size());

  std::string bytes;
  const int used = header.used;
  const size_t packed = ops::PackedLaneBytes(kv, used);
  bytes.reserve(sizeof(header) + 16 * size_t(kv.kv_heads) * used + packed + 64);
  Append(bytes, &header, 1);
  bytes += policy.name();
  const auto append_slots = [&](bool has, const Tensor& tensor) {
    if (!has) return;
    const std::vector<int32_t> values = state.ReadSlots<int32_t>(s, tensor, lane, used);
    Append(bytes, values.data(), values.size());
  };
  append_slots(true, state.slot_pos);
  append_slots(policy.needs().scores, state.scores);
  append_slots(policy.needs().value_norms, state.value_norms);
  append_slots(policy.needs().errors, state.errors);
  if (packed > 0) {
    ASSIGN_OR_RETURN(const Tensor staging,
                     Tensor::Allocate(*state.device, DType::kU8, {int64_t(packed)}));
    ops::PackLane(s, staging.view().as<std::byte>(), kv, lane, used);
    const size_t before = bytes.size();
    bytes.resize(before + packed);
    s.CopyAsync(bytes.data() + before, staging.view().data, packed);
    s.Synchronize();
  }
  return bytes;
}

absl::Status KvCache::RestoreLane(Stream& s, int lane, std::string_view saved) {
  State& state = *state_;
  CHECK(lane >= 0 && lane < state.shape.lanes) << "lane " << lane << " of " << state.shape.lanes;
  const KvMemory& kv = state.storage.memory();
  state.SetRules(s, lane, LaneRules{});
  ops::ClearLane(s, state.table(), lane);

  SavedHeader header;
  if (saved.size() < sizeof(header)) {
    return Torn(absl::StrCat(saved.size(), " bytes are less than its header"));
  }
  std::memcpy(&header, saved.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return Torn("not a lane saved by this version");
  }
  saved.remove_prefix(sizeof(header));
  if (header.kv_heads != kv.kv_heads) return Mismatch("kv_heads", header.kv_heads, kv.kv_heads);
  if (header.head_dim != kv.head_dim) return Mismatch("head_dim", header.head_dim, kv.head_dim);
  if (header.k_format != static_cast<int32_t>(kv.k_format) ||
      header.v_format != static_cast<int32_t>(kv.v_format)) {
    return absl::FailedPreconditionError("saved lane is of another storage than this cache");
  }
  if (!Plausible(header)) return Torn("its rules or progress are damaged");
  if (header.rules.length > state.shape.length) {
    return absl::FailedPreconditionError(absl::StrCat(
        "saved lane has cache_length ", header.rules.length, ", this cache ", state.shape.length));
  }
  if (header.name_bytes < 0 || saved.size() < static_cast<size_t>(header.name_bytes)) {
    return Torn("cut within the policy's name");
  }
  const std::string name(saved.substr(0, header.name_bytes));
  saved.remove_prefix(header.name_bytes);
  const int number = state.PolicyNumber(name);
  if (number < 0) {
    return absl::FailedPreconditionError("saved lane's policy is not enabled here");
  }
  const PolicyNeeds& needs = state.policies[number]->needs();
  if (header.rules.wants_mass != static_cast<int>(needs.scores)) {
    return Torn("its rules do not belong to its policy");
  }
  const int used = header.used;
  const size_t slots = size_t(kv.kv_heads) * used;
  const size_t arrays = 1 + needs.scores + needs.value_norms + needs.errors;
  const size_t packed = ops::PackedLaneBytes(kv, used);
  if (saved.size() != slots * arrays * sizeof(float) + packed) {
    return Torn(absl::StrCat(saved.size(), " bytes of slots, expected ",
                             slots * arrays * sizeof(float) + packed));
  }
  const std::vector<int32_t> positions = Take<int32_t>(saved, slots);
  for (int g = 0; g < kv.kv_heads; ++g) {
    if (!PlausiblePositions(
            {positions.begin() + int64_t{g} * used, positions.begin() + int64_t{g + 1} * used},
            header.progress.tokens)) {
      return Torn(absl::StrCat("positions of KV head ", g, " are damaged"));
    }
  }
  const auto write_slots = [&](const Tensor& tensor, const auto& values) {
    for (int g = 0; g < kv.kv_heads; ++g) {
      s.CopyAsync(state.Slots<int32_t>(tensor, lane, g), values.data() + int64_t{g} * used,
                  size_t(used) * sizeof(int32_t));
    }
    s.Synchronize();
  };
  write_slots(state.slot_pos, positions);
  for (const auto& [has, tensor] :
       {std::pair{needs.scores, &state.scores}, std::pair{needs.value_norms, &state.value_norms},
        std::pair{needs.errors, &state.errors}}) {
    if (has) write_slots(*tensor, Take<float>(saved, slots));
  }
  if (packed > 0) {
    ASSIGN_OR_RETURN(const Tensor staging,
                     Tensor::Allocate(*state.device, DType::kU8, {int64_t(packed)}));
    s.CopyAsync(staging.view().data, saved.data(), packed);
    ops::UnpackLane(s, kv, lane, used, staging.view().as<std::byte>());
    s.Synchronize();
  }
  s.CopyAsync(state.progress.view().as<LaneProgress>() + lane, &header.progress,
              sizeof(LaneProgress));
  s.Synchronize();
  header.rules.policy = number;
  state.SetRules(s, lane, header.rules);
  return absl::OkStatus();
}

absl::Status KvCache::CheckLane(Stream& s, int lane, const LanePolicy& policy, int layer,
                                int tokens) const {
  const State& state = *state_;
  const LaneRules& rules = state.lane_rules[lane];
  const int number = state.PolicyNumber(policy.policy);
  if (number < 0 || rules.policy != number) {
    return absl::DataLossError(
        absl::StrCat("saved lane is of another policy than '", policy.policy, "'"));
  }
  const int length = policy.cache_length.empty() ? state.shape.length : policy.length_of(layer);
  ASSIGN_OR_RETURN(LaneRules expected, state.policies[number]->Rules(policy, length));
  expected.policy = number;
  if (std::memcmp(&rules, &expected, sizeof(rules)) != 0) {
    return absl::DataLossError(
        absl::StrCat("saved lane has other parameters than its policy '", policy.policy, "'"));
  }
  if (const int held = state.Progress(s, lane).tokens; held != tokens) {
    return absl::DataLossError(
        absl::StrCat("saved lane is of ", held, " tokens, expected ", tokens));
  }
  return absl::OkStatus();
}

}  // namespace keyline
