#include "runtime/cache/kv_cache.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/cache_ops.h"
#include "runtime/cache/cache_registry.h"
#include "runtime/cache/kv_cache_state.h"

namespace keyline {
namespace {

using Policies = std::vector<std::unique_ptr<EvictionPolicy>>;

// The policies that requests may ask for: the default one and those enabled besides.
absl::StatusOr<Policies> EnabledPolicies(const CacheConfig& config) {
  std::vector<std::string> names = config.enabled;
  if (std::find(names.begin(), names.end(), config.policy.policy) == names.end()) {
    names.insert(names.begin(), config.policy.policy);
  }
  Policies policies;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(std::unique_ptr<EvictionPolicy> policy, MakePolicy(name));
    policies.push_back(std::move(policy));
  }
  return policies;
}

PolicyNeeds NeedsOf(const Policies& policies) {
  PolicyNeeds all{.evicts = false};
  for (const auto& policy : policies) {
    all.scores |= policy->needs().scores;
    all.value_norms |= policy->needs().value_norms;
    all.errors |= policy->needs().errors;
    all.moves |= policy->needs().moves;
    all.evicts |= policy->needs().evicts;
  }
  return all;
}

absl::Status CheckShape(const KvCacheShape& shape) {
  const auto positive = [](const char* field, int value) {
    return value > 0 ? absl::OkStatus()
                     : absl::InvalidArgumentError(absl::StrCat(field, " ", value, " < 1"));
  };
  RETURN_IF_ERROR(positive("lanes", shape.lanes));
  RETURN_IF_ERROR(positive("kv_heads", shape.kv_heads));
  RETURN_IF_ERROR(positive("head_dim", shape.head_dim));
  RETURN_IF_ERROR(positive("cache_length", shape.length));
  RETURN_IF_ERROR(positive("max_pass_tokens", shape.max_tokens));
  return absl::OkStatus();
}

// Policies and formats that go together, for a shape that makes sense.
struct Plan {
  Policies policies;
  PolicyNeeds needs;
  StorageFormats formats;
};

absl::StatusOr<Plan> MakePlan(const CacheConfig& config, const KvCacheShape& shape) {
  RETURN_IF_ERROR(CheckShape(shape));
  Plan plan;
  ASSIGN_OR_RETURN(plan.policies, EnabledPolicies(config));
  plan.needs = NeedsOf(plan.policies);
  ASSIGN_OR_RETURN(plan.formats, FormatsOf(config.storage, shape.plain));
  RETURN_IF_ERROR(KvStorage::Check(plan.formats, shape.head_dim));
  for (const auto& policy : plan.policies) {
    if (policy->needs().errors && !IsQuantized(plan.formats.k) && !IsQuantized(plan.formats.v)) {
      return absl::InvalidArgumentError(
          absl::StrCat("policy '", policy->name(),
                       "' ranks by what quantisation lost and storage '", config.storage,
                       "' loses nothing; use storage int8, int4 or k8v4, or policy "
                       "h2o or h2o_vnorm"));
    }
  }
  return plan;
}

// Arrays of a Placement.
int PlacementArrays(const PolicyNeeds& needs) { return needs.moves ? 3 : 1; }

size_t WorkspaceBytes(const PolicyNeeds& needs, const KvCacheShape& shape) {
  const size_t per_token = size_t(shape.max_tokens) * shape.kv_heads * sizeof(int32_t);
  const size_t per_slot =
      size_t(shape.lanes) * shape.kv_heads * PhysicalSlots(shape.length) * sizeof(float);
  return per_token * PlacementArrays(needs) + (needs.scores ? per_slot : 0);
}

absl::StatusOr<std::shared_ptr<CacheWorkspace>> MakeWorkspace(Device& device,
                                                              const PolicyNeeds& needs,
                                                              const KvCacheShape& shape) {
  auto workspace = std::make_shared<CacheWorkspace>();
  const auto allocate = [&](Tensor& tensor, bool needed, DType type,
                            std::initializer_list<int64_t> dims) -> absl::Status {
    if (!needed) return absl::OkStatus();
    ASSIGN_OR_RETURN(tensor, Tensor::Allocate(device, type, dims));
    return absl::OkStatus();
  };
  const int64_t heads = shape.kv_heads;
  CacheWorkspace& w = *workspace;
  RETURN_IF_ERROR(allocate(w.slots, true, DType::kI32, {shape.max_tokens, heads}));
  RETURN_IF_ERROR(allocate(w.moved_from, needs.moves, DType::kI32, {shape.max_tokens, heads}));
  RETURN_IF_ERROR(allocate(w.moved_to, needs.moves, DType::kI32, {shape.max_tokens, heads}));
  RETURN_IF_ERROR(allocate(w.mass, needs.scores, DType::kF32,
                           {shape.lanes, heads, PhysicalSlots(shape.length)}));
  return workspace;
}

bool LargeEnough(const CacheWorkspace& workspace, const PolicyNeeds& needs,
                 const KvCacheShape& shape) {
  const size_t mass = needs.scores ? size_t(shape.lanes) * shape.kv_heads *
                                         PhysicalSlots(shape.length) * sizeof(float)
                                   : 0;
  const size_t slots = size_t(shape.max_tokens) * shape.kv_heads * sizeof(int32_t);
  return workspace.slots.bytes() >= slots &&
         (!needs.moves || workspace.moved_from.bytes() >= slots) && workspace.mass.bytes() >= mass;
}

}  // namespace

SlotTable KvCache::State::table() const {
  return {.lanes = shape.lanes,
          .kv_heads = shape.kv_heads,
          .slots = slots,
          .rules = rules.view().as<LaneRules>(),
          .progress = progress.view().as<LaneProgress>(),
          .slot_pos = slot_pos.view().as<int32_t>(),
          .scores = scores.view().as<float>(),
          .value_norms = value_norms.view().as<float>(),
          .errors = errors.view().as<float>()};
}

Placement KvCache::State::placement(const Batch& batch) const {
  if (batch.max_chunk_tokens == 1) {
    const TensorView arrays = decode_places.view();
    return {.slots = arrays.row<int32_t>(0),
            .moved_from = needs.moves ? arrays.row<int32_t>(1) : nullptr,
            .moved_to = needs.moves ? arrays.row<int32_t>(2) : nullptr};
  }
  return {.slots = workspace->slots.view().as<int32_t>(),
          .moved_from = workspace->moved_from.view().as<int32_t>(),
          .moved_to = workspace->moved_to.view().as<int32_t>()};
}

int KvCache::State::PolicyNumber(const std::string& name) const {
  for (size_t i = 0; i < policies.size(); ++i) {
    if (policies[i]->name() == name) return static_cast<int>(i);
  }
  return -1;
}

void KvCache::State::SetRules(Stream& s, int lane, const LaneRules& lane_rule) {
  lane_rules[lane] = lane_rule;
  s.CopyAsync(rules.view().as<LaneRules>() + lane, &lane_rules[lane], sizeof(LaneRules));
}

LaneProgress KvCache::State::Progress(Stream& s, int lane) const {
  LaneProgress host;
  s.CopyAsync(&host, progress.view().as<LaneProgress>() + lane, sizeof(host));
  s.Synchronize();
  return host;
}

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::~KvCache() = default;

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(Device& device, const CacheConfig& config,
                                                         const KvCacheShape& shape,
                                                         const KvCache* sibling) {
  ASSIGN_OR_RETURN(Plan plan, MakePlan(config, shape));
  auto state = std::make_unique<State>();
  state->device = &device;
  state->shape = shape;
  state->slots = PhysicalSlots(shape.length);
  state->policies = std::move(plan.policies);
  state->needs = plan.needs;
  for (const auto& policy : state->policies) state->policy_rules.push_back(policy->rule());
  state->lane_rules.resize(shape.lanes);
  ASSIGN_OR_RETURN(state->storage, KvStorage::Create(device, plan.formats, shape.lanes,
                                                     shape.kv_heads, shape.head_dim, state->slots));
  const auto per_lane = [&](size_t bytes) {
    return Tensor::Allocate(device, DType::kU8, {int64_t{shape.lanes}, int64_t(bytes)});
  };
  const auto per_slot = [&](DType type) {
    return Tensor::Allocate(device, type, {shape.lanes, shape.kv_heads, state->slots});
  };
  ASSIGN_OR_RETURN(state->rules, per_lane(sizeof(LaneRules)));
  ASSIGN_OR_RETURN(state->progress, per_lane(sizeof(LaneProgress)));
  ASSIGN_OR_RETURN(state->slot_pos, per_slot(DType::kI32));
  if (plan.needs.scores) {
    ASSIGN_OR_RETURN(state->scores, per_slot(DType::kF32));
  }
  if (plan.needs.value_norms) {
    ASSIGN_OR_RETURN(state->value_norms, per_slot(DType::kF32));
  }
  if (plan.needs.errors) {
    ASSIGN_OR_RETURN(state->errors, per_slot(DType::kF32));
  }
  ASSIGN_OR_RETURN(state->decode_places,
                   Tensor::Allocate(device, DType::kI32,
                                    {PlacementArrays(plan.needs), shape.lanes * shape.kv_heads}));
  if (sibling != nullptr && sibling->state_->shape.kv_heads == shape.kv_heads &&
      LargeEnough(*sibling->state_->workspace, plan.needs, shape)) {
    state->workspace = sibling->state_->workspace;
  } else {
    ASSIGN_OR_RETURN(state->workspace, MakeWorkspace(device, plan.needs, shape));
    state->owns_workspace = true;
  }
  std::unique_ptr<Stream> stream = device.NewStream();
  for (int lane = 0; lane < shape.lanes; ++lane) {
    state->SetRules(*stream, lane, LaneRules{});
    ops::ClearLane(*stream, state->table(), lane);
  }
  stream->Synchronize();
  return std::unique_ptr<KvCache>(new KvCache(std::move(state)));
}

absl::StatusOr<KvCacheBytes> KvCache::BytesFor(const CacheConfig& config,
                                               const KvCacheShape& shape) {
  ASSIGN_OR_RETURN(const Plan plan, MakePlan(config, shape));
  const int slots = PhysicalSlots(shape.length);
  const int per_slot = 1 + plan.needs.scores + plan.needs.value_norms + plan.needs.errors;
  return KvCacheBytes{
      .per_lane = KvStorage::BytesPerLane(plan.formats, shape.kv_heads, shape.head_dim, slots) +
                  size_t(shape.kv_heads) * slots * per_slot * sizeof(float) +
                  size_t(shape.kv_heads) * PlacementArrays(plan.needs) * sizeof(int32_t) +
                  sizeof(LaneRules) + sizeof(LaneProgress),
      .workspace = WorkspaceBytes(plan.needs, shape)};
}

bool KvCache::CopiesSlots(const CacheConfig& config) {
  const absl::StatusOr<StorageFormats> formats = FormatsOf(config.storage, DType::kF32);
  const absl::StatusOr<Policies> policies = EnabledPolicies(config);
  if (!formats.ok() || !policies.ok()) return false;  // no cache is made so
  return IsQuantized(formats->k) || IsQuantized(formats->v) || NeedsOf(*policies).scores;
}

void KvCache::OpenLane(Stream& s, int lane, const LanePolicy& policy, int layer) {
  State& state = *state_;
  CHECK(lane >= 0 && lane < state.shape.lanes) << "lane " << lane << " of " << state.shape.lanes;
  const int number = state.PolicyNumber(policy.policy);
  CHECK_GE(number, 0) << "policy '" << policy.policy << "' is not enabled";
  const int length = policy.cache_length.empty() ? state.shape.length : policy.length_of(layer);
  CHECK_LE(length, state.shape.length) << "layer " << layer;
  absl::StatusOr<LaneRules> rules = state.policies[number]->Rules(policy, length);
  CHECK(rules.ok()) << rules.status();
  rules->policy = number;
  state.SetRules(s, lane, *rules);
  ops::ClearLane(s, state.table(), lane);
}

void KvCache::PlaceAhead(Stream& s, std::span<const std::unique_ptr<KvCache>> layers,
                         const Batch& batch) {
  const auto records = [](const auto& layer) { return layer->state_->record; };
  if (layers.empty() || batch.max_chunk_tokens != 1 || std::ranges::any_of(layers, records)) return;
  std::vector<PlacedCache> caches;
  for (const auto& layer : layers) caches.push_back(layer->state_->placed_cache(batch));
  const bool placed = ops::PlaceDecode(s, caches, batch, layers[0]->state_->policy_rules);
  for (const auto& layer : layers) layer->state_->placed = placed;
}

void KvCache::Attend(Stream& s, const Batch& batch, TensorView qkv, const AttentionSpec& spec,
                     TensorView out) {
  State& state = *state_;
  CHECK_LE(batch.tokens, state.shape.max_tokens);
  const PlacedCache cache = state.placed_cache(batch);
  const auto& [kv, table, placement] = cache;
  float* mass = state.needs.scores ? state.workspace->mass.view().as<float>() : nullptr;
  const int policies = static_cast<int>(state.policies.size());

  std::vector<SlotPositionsOfLane> before;
  if (state.record) {
    for (const Chunk& chunk : ReadChunks(s, batch)) before.push_back(SlotPositions(s, chunk.lane));
  }

  const std::vector<PolicyRule>& rules = state.policy_rules;
  const bool placed =
      std::exchange(state.placed, false) ||
      (batch.max_chunk_tokens == 1 && ops::PlaceDecode(s, std::span(&cache, 1), batch, rules));
  if (!placed) {
    for (int i = 0; i < policies; ++i) state.policies[i]->Place(s, placement, batch, table, i);
    // Only a grace ring moves tokens. What is recorded must do for sequences that open later.
    const auto moves = [](const LaneRules& rules) { return rules.grace > 0; };
    if (state.needs.moves &&
        (batch.max_chunk_tokens == 1 || std::ranges::any_of(state.lane_rules, moves))) {
      ops::MoveSlots(s, kv, table, placement, batch);
    }
  }
  if (!placed || !ops::AttendDecode(s, out, qkv, batch, kv, table, placement, spec, rules)) {
    ops::RotateAndWrite(s, kv, table, placement, qkv, batch, spec);
    ops::Attention(s, out, mass, qkv, batch, kv, table, spec);
    for (int i = 0; i < policies; ++i) state.policies[i]->Score(s, table, mass, batch, i);
    ops::AdvanceLanes(s, table, batch);
  }
  if (state.record) {
    ReadPlacement(s, placement, batch, before, state.shape.kv_heads, state.placements);
  }
}

std::vector<std::vector<int32_t>> KvCache::SlotPositions(Stream& s, int lane) const {
  const State& state = *state_;
  CHECK(lane >= 0 && lane < state.shape.lanes) << "lane " << lane << " of " << state.shape.lanes;
  const int length = state.lane_rules[lane].length;
  const std::vector<int32_t> all = state.ReadSlots<int32_t>(s, state.slot_pos, lane, length);
  std::vector<std::vector<int32_t>> heads;
  heads.reserve(state.shape.kv_heads);
  for (int g = 0; g < state.shape.kv_heads; ++g) {
    heads.emplace_back(all.begin() + size_t(g) * length, all.begin() + size_t(g + 1) * length);
  }
  return heads;
}

std::vector<std::vector<int32_t>> KvCache::KeptPositions(Stream& s, int lane) const {
  std::vector<std::vector<int32_t>> heads = SlotPositions(s, lane);
  for (std::vector<int32_t>& kept : heads) {
    kept.erase(std::remove(kept.begin(), kept.end(), -1), kept.end());
    std::sort(kept.begin(), kept.end());
  }
  return heads;
}

LaneReport KvCache::Report(Stream& s, int lane) const {
  CHECK(lane >= 0 && lane < state_->shape.lanes) << "lane " << lane;
  return ReportLane(state_->lane_rules[lane], state_->Progress(s, lane).tokens);
}

LaneReport ReportLane(const LaneRules& rules, int tokens) {
  const int used = std::min(rules.length, tokens);
  const int ahead = std::min(used, rules.sinks) +
                    std::max(0, std::min(used, rules.protect_end) - rules.protect_begin);
  const int ring = std::max(0, used - (rules.length - rules.grace));
  return {.cache_length = rules.length,
          .slots_used = used,
          .evicted = tokens - used,
          .protected_slots = ahead + ring};
}

void KvCache::RecordPlacements(bool on) { state_->record = on; }

std::vector<ChunkPlacement> KvCache::TakePlacements() {
  return std::exchange(state_->placements, {});
}

size_t KvCache::device_bytes() const {
  const State& state = *state_;
  return state.storage.device_bytes() + state.rules.bytes() + state.progress.bytes() +
         state.slot_pos.bytes() + state.scores.bytes() + state.value_norms.bytes() +
         state.errors.bytes() + state.decode_places.bytes() +
         (state.owns_workspace ? state.workspace->bytes() : 0);
}

}  // namespace keyline
