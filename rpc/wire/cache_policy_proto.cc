#include "rpc/wire/cache_policy_proto.h"

#include <utility>

#include "kernels/device/status_macros.h"
#include "rpc/wire/field_checker.h"
#include "runtime/text/end_marker.h"

namespace keyline {
namespace {

constexpr uint32_t kMaxSlots = 1 << 24;
constexpr uint32_t kMaxChunk = 1 << 20;
constexpr uint32_t kMaxPosition = 1 << 30;

std::string PolicyName(const v1::CachePolicy& policy) {
  switch (policy.policy_case()) {
    case v1::CachePolicy::kDense:
      return "dense";
    case v1::CachePolicy::kLastRecent:
      return "last_recent";
    case v1::CachePolicy::kProtectedLastRecent:
      return "protected_last_recent";
    case v1::CachePolicy::kH2O:
      return policy.h2o().value_norms() ? "h2o_vnorm" : "h2o";
    case v1::CachePolicy::kQuantizedH2O:
      return policy.quantized_h2o().value_norms() ? "qh2o_vnorm" : "qh2o";
    case v1::CachePolicy::POLICY_NOT_SET:
      return "";
  }
  return "";
}

template <typename Policy>
void TakeSinks(const Policy& from, FieldChecker& check, LanePolicy* to) {
  if (from.has_sinks()) check.Take("sinks", from.sinks(), 0u, kMaxSlots, &to->sinks.emplace());
}

absl::Status TakeFields(const v1::LastRecentPolicy& from, LanePolicy* to) {
  FieldChecker check("cache.last_recent.");
  TakeSinks(from, check, to);
  return check.status();
}

absl::Status TakeFields(const v1::ProtectedLastRecentPolicy& from, LanePolicy* to) {
  FieldChecker check("cache.protected_last_recent.");
  TakeSinks(from, check, to);
  if (from.has_protect_begin()) {
    check.Take("protect_begin", from.protect_begin(), 0u, kMaxPosition, &to->protect_begin);
    to->protect_end = to->protect_begin;
  }
  if (from.has_protect_end()) {
    check.Take("protect_end", from.protect_end(), static_cast<uint32_t>(to->protect_begin),
               kMaxPosition, &to->protect_end);
  }
  if (from.has_protect_until()) {
    to->protect_until = from.protect_until();
    if (from.has_protect_begin() || from.has_protect_end()) {
      check.Refuse("protect_until", "excludes protect_begin and protect_end");
    }
    const absl::Status expression = CheckEndMarker(to->protect_until);
    if (!expression.ok()) check.Refuse("protect_until", std::string(expression.message()));
    to->protect_begin = to->protect_end = 0;
  } else if (from.has_protect_begin() || from.has_protect_end()) {
    to->protect_until.clear();
  }
  if (from.has_max_protected_fraction()) {
    check.Take("max_protected_fraction", from.max_protected_fraction(), 0., 1.,
               &to->max_protected_fraction);
  }
  return check.status();
}

// H2OPolicy and QuantizedH2OPolicy have the same fields.
template <typename Policy>
absl::Status TakeH2OFields(const std::string& prefix, const Policy& from, LanePolicy* to) {
  FieldChecker check(prefix);
  TakeSinks(from, check, to);
  if (from.has_normalize_scores()) to->normalize_scores = from.normalize_scores();
  if (from.has_grace()) check.Take("grace", from.grace(), 0u, kMaxSlots, &to->grace);
  if (from.has_keep_initial_fraction()) {
    check.Take("keep_initial_fraction", from.keep_initial_fraction(), 0., 1.,
               &to->keep_initial_fraction);
  }
  if (from.has_max_chunk()) {
    check.Take("max_chunk", from.max_chunk(), 0u, kMaxChunk, &to->max_chunk);
  }
  return check.status();
}

template <typename Policy>
void WriteH2O(const LanePolicy& from, bool value_norms, Policy* to) {
  to->set_value_norms(value_norms);
  to->set_normalize_scores(from.normalize_scores);
  to->set_grace(from.grace);
  if (from.sinks) to->set_sinks(*from.sinks);
  to->set_keep_initial_fraction(from.keep_initial_fraction);
  to->set_max_chunk(from.max_chunk);
}

absl::Status TakeLengths(const v1::CachePolicy& from, int layers, LanePolicy* to) {
  FieldChecker check("cache.");
  const int lengths = from.cache_length_size();
  if (lengths != 0 && lengths != 1 && lengths != layers) {
    check.Refuse("cache_length",
                 absl::StrCat("got ", lengths, " numbers, must be 1, or one for each of ", layers,
                              " layers"));
  } else if (lengths != 0) {
    to->cache_length.assign(lengths, 0);
    for (int i = 0; i < lengths; ++i) {
      check.Take(absl::StrCat("cache_length[", i, "]"), from.cache_length(i), 1u, kMaxSlots,
                 &to->cache_length[i]);
    }
  }
  if (from.has_chunk_size()) {
    check.Take("chunk_size", from.chunk_size(), 1u, kMaxChunk, &to->chunk_size.emplace());
  }
  return check.status();
}

absl::Status TakePolicy(const v1::CachePolicy& from, LanePolicy* to) {
  switch (from.policy_case()) {
    case v1::CachePolicy::kDense:
      return absl::OkStatus();
    case v1::CachePolicy::kLastRecent:
      return TakeFields(from.last_recent(), to);
    case v1::CachePolicy::kProtectedLastRecent:
      return TakeFields(from.protected_last_recent(), to);
    case v1::CachePolicy::kH2O:
      return TakeH2OFields("cache.h2o.", from.h2o(), to);
    case v1::CachePolicy::kQuantizedH2O:
      return TakeH2OFields("cache.quantized_h2o.", from.quantized_h2o(), to);
    case v1::CachePolicy::POLICY_NOT_SET:
      break;
  }
  return FieldError("cache.policy",
                    "not set, must be one of dense, last_recent, protected_last_recent, h2o, "
                    "quantized_h2o");
}

}  // namespace

absl::StatusOr<LanePolicy> LanePolicyFromProto(const v1::CachePolicy& policy,
                                               const LanePolicy& server, int layers) {
  LanePolicy to;
  const std::string name = PolicyName(policy);
  if (name == server.policy) to = server;
  to.policy = name;
  to.cache_length = server.cache_length;
  to.chunk_size.reset();  // unset: at most the server's, as admission finds it to fit
  RETURN_IF_ERROR(TakePolicy(policy, &to));
  RETURN_IF_ERROR(TakeLengths(policy, layers, &to));
  return to;
}

v1::CachePolicy LanePolicyToProto(const LanePolicy& policy) {
  v1::CachePolicy to;
  to.mutable_cache_length()->Add(policy.cache_length.begin(), policy.cache_length.end());
  if (policy.chunk_size) to.set_chunk_size(*policy.chunk_size);
  if (policy.policy == "dense") {
    to.mutable_dense();
  } else if (policy.policy == "last_recent") {
    v1::LastRecentPolicy* recent = to.mutable_last_recent();
    if (policy.sinks) recent->set_sinks(*policy.sinks);
  } else if (policy.policy == "protected_last_recent") {
    v1::ProtectedLastRecentPolicy* recent = to.mutable_protected_last_recent();
    if (policy.sinks) recent->set_sinks(*policy.sinks);
    if (policy.protect_until.empty()) {
      recent->set_protect_begin(policy.protect_begin);
      recent->set_protect_end(policy.protect_end);
    } else {
      recent->set_protect_until(policy.protect_until);
    }
    recent->set_max_protected_fraction(policy.max_protected_fraction);
  } else if (policy.policy == "h2o" || policy.policy == "h2o_vnorm") {
    WriteH2O(policy, policy.policy == "h2o_vnorm", to.mutable_h2o());
  } else if (policy.policy == "qh2o" || policy.policy == "qh2o_vnorm") {
    WriteH2O(policy, policy.policy == "qh2o_vnorm", to.mutable_quantized_h2o());
  }
  return to;
}

}  // namespace keyline
