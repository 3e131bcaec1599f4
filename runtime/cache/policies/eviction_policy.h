// EvictionPolicy: decides which slots a chunk's tokens take, and so which tokens are forgotten. It
// sees positions and scores, never K or V. Stateless: what a sequence asked for and how far it has
// come are in device memory, per lane (kernels/ops/cache_memory.h), because the lanes of one cache
// may have different policies.
//
// To add one: its file here, one line in ../cache_registry.cc; tests/runtime/cache picks it up by
// name. Thread: any.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/device.h"
#include "kernels/ops/batch.h"
#include "kernels/ops/cache_memory.h"
#include "runtime/config/cache_config.h"

namespace keyline {

// What a cache must keep for a policy.
struct PolicyNeeds {
  bool scores = false;       // attention mass is taken and summed per slot
  bool value_norms = false;  // SlotTable::value_norms
  bool errors = false;       // SlotTable::errors: a quantised storage
  bool moves = false;        // tokens may move from slot to slot
  bool evicts = true;        // false: a sequence ends where the cache is full
};

// Fields of LanePolicy that only some policies have.
enum PolicyField : unsigned {
  kNoField = 0,
  kSinks = 1,
  kGrace = 2,
  kKeepInitialFraction = 4,
  kNormalizeScores = 8,
  kMaxChunk = 16,
  kProtect = 32,
};

class EvictionPolicy {
 public:
  // `fields`: those of LanePolicy that it reads; others are refused unless at their defaults.
  EvictionPolicy(std::string name, unsigned fields, PolicyNeeds needs, const PolicyRule& rule = {})
      : name_(std::move(name)), fields_(fields), needs_(needs), rule_(rule) {}
  virtual ~EvictionPolicy() = default;

  const std::string& name() const { return name_; }
  const PolicyNeeds& needs() const { return needs_; }
  unsigned fields() const { return fields_; }
  // What the kernels go by.
  const PolicyRule& rule() const { return rule_; }

  // The lane's rules in a layer of `length` slots, all defaults filled in. INVALID_ARGUMENT names
  // field, value and limit. Does not look at chunk_size.
  absl::StatusOr<LaneRules> Rules(const LanePolicy& asked, int length) const;

  // Most tokens of a chunk once the sequence has begun, by the rules; max_chunk aside.
  virtual int MaxChunk(const LaneRules& rules) const = 0;

  // Enqueues the choice of slots, and moves, for the chunks whose lane has policy number `number`.
  void Place(Stream& s, const Placement& out, const Batch& batch, const SlotTable& table,
             int number) const;

  // Enqueues what the policy learns from a pass. mass: see ops::Attention; null if no policy of the
  // cache scores.
  void Score(Stream& s, const SlotTable& table, const float* mass, const Batch& batch,
             int number) const;

 protected:
  // Fills in what this policy reads. Fields that all policies share have been checked.
  virtual absl::Status FillRules(const LanePolicy& asked, LaneRules& rules) const = 0;

 private:
  std::string name_;
  unsigned fields_;
  PolicyNeeds needs_;
  PolicyRule rule_;
};

// Sinks of the policies that keep the most recent tokens: as asked, or min(16, max(length / 8, 1)).
int RecentSinks(const LanePolicy& asked, int length);

std::unique_ptr<EvictionPolicy> MakeDense(std::string name);
std::unique_ptr<EvictionPolicy> MakeLastRecent(std::string name);
std::unique_ptr<EvictionPolicy> MakeProtectedLastRecent(std::string name);
std::unique_ptr<EvictionPolicy> MakeH2o(std::string name);
std::unique_ptr<EvictionPolicy> MakeH2oVnorm(std::string name);
std::unique_ptr<EvictionPolicy> MakeQh2o(std::string name);
std::unique_ptr<EvictionPolicy> MakeQh2oVnorm(std::string name);
std::unique_ptr<EvictionPolicy> MakeH2oOriginal(std::string name);

}  // namespace keyline
