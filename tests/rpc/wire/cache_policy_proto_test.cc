// Cache policies: every message becomes the policy of its name and back, unset fields are the
// server's or the documented defaults, numbers are bounded.
#include "rpc/wire/cache_policy_proto.h"

#include <glog/logging.h>
#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <string>

namespace keyline {
namespace {

using ::testing::ElementsAre;

LanePolicy ServersPolicy() {
  LanePolicy policy;
  policy.policy = "h2o_vnorm";
  policy.cache_length = {64};
  policy.chunk_size = 16;
  policy.sinks = 4;
  policy.grace = 8;
  policy.normalize_scores = true;
  policy.keep_initial_fraction = 0.25;
  policy.max_chunk = 12;
  return policy;
}

v1::CachePolicy Parse(const std::string& text) {
  v1::CachePolicy policy;
  CHECK(google::protobuf::TextFormat::ParseFromString(text, &policy)) << text;
  return policy;
}

absl::StatusOr<LanePolicy> Read(const std::string& text) {
  return LanePolicyFromProto(Parse(text), ServersPolicy(), 2);
}

TEST(CachePolicyProto, NamesOfPolicies) {
  const std::pair<const char*, const char*> names[] = {
      {"dense {}", "dense"},
      {"last_recent {}", "last_recent"},
      {"protected_last_recent {}", "protected_last_recent"},
      {"h2o {}", "h2o"},
      {"h2o { value_norms: true }", "h2o_vnorm"},
      {"quantized_h2o {}", "qh2o"},
      {"quantized_h2o { value_norms: true }", "qh2o_vnorm"}};
  for (const auto& [text, name] : names) {
    const absl::StatusOr<LanePolicy> policy = Read(text);
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_EQ(policy->policy, name);
  }
}

TEST(CachePolicyProto, TheServersPolicyLendsItsValues) {
  const absl::StatusOr<LanePolicy> same = Read("h2o { value_norms: true grace: 3 }");
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(same->grace, 3);
  EXPECT_EQ(same->sinks, 4);
  EXPECT_TRUE(same->normalize_scores);
  EXPECT_EQ(same->keep_initial_fraction, 0.25);
  EXPECT_EQ(same->max_chunk, 12);
  EXPECT_THAT(same->cache_length, ElementsAre(64));
  EXPECT_FALSE(same->chunk_size.has_value());  // admission takes the server's, or what fits

  const absl::StatusOr<LanePolicy> other = Read("h2o {}");
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->grace, 0);
  EXPECT_FALSE(other->sinks.has_value());
  EXPECT_FALSE(other->normalize_scores);
  EXPECT_EQ(other->keep_initial_fraction, 0.05);
  EXPECT_EQ(other->max_chunk, 0);
  EXPECT_THAT(other->cache_length, ElementsAre(64));
  EXPECT_FALSE(other->chunk_size.has_value());
}

TEST(CachePolicyProto, EveryFieldArrivesAndReturns) {
  const char* const texts[] = {
      "cache_length: [32, 48] chunk_size: 5 dense {}",
      "cache_length: 32 chunk_size: 5 last_recent { sinks: 3 }",
      "cache_length: 32 chunk_size: 5 protected_last_recent { sinks: 3 protect_begin: 2 "
      "protect_end: 9 max_protected_fraction: 0.25 }",
      "cache_length: 32 chunk_size: 5 protected_last_recent { "
      "max_protected_fraction: 0.5 protect_until: '</system>' }",
      "cache_length: 32 chunk_size: 5 h2o { value_norms: false normalize_scores: true grace: 7 "
      "sinks: 1 keep_initial_fraction: 0.5 max_chunk: 4 }",
      "cache_length: 32 chunk_size: 5 quantized_h2o { value_norms: true normalize_scores: true "
      "grace: 7 sinks: 1 keep_initial_fraction: 0.5 max_chunk: 4 }"};
  for (const char* text : texts) {
    const absl::StatusOr<LanePolicy> policy = Read(text);
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_EQ(LanePolicyToProto(*policy).DebugString(), Parse(text).DebugString());
  }
  const absl::StatusOr<LanePolicy> range = Read(texts[2]);
  EXPECT_EQ(range->sinks, 3);
  EXPECT_EQ(range->protect_begin, 2);
  EXPECT_EQ(range->protect_end, 9);
  EXPECT_EQ(range->max_protected_fraction, 0.25);
}

TEST(CachePolicyProto, APolicyThatRequestsCannotAskForHasNoMessage) {
  LanePolicy policy = ServersPolicy();
  policy.policy = "h2o_original";
  EXPECT_EQ(LanePolicyToProto(policy).policy_case(), v1::CachePolicy::POLICY_NOT_SET);
}

TEST(CachePolicyProto, WrongNumbersAreNamed) {
  const std::pair<const char*, const char*> wrong[] = {
      {"cache_length: [1, 2, 3] dense {}",
       "cache.cache_length: got 3 numbers, must be 1, or one for each of 2 layers"},
      {"cache_length: [1, 0] dense {}", "cache.cache_length[1]: got 0, must be from 1 to 16777216"},
      {"cache_length: 16777217 dense {}",
       "cache.cache_length[0]: got 16777217, must be from 1 to 16777216"},
      {"chunk_size: 0 dense {}", "cache.chunk_size: got 0, must be from 1 to 1048576"},
      {"last_recent { sinks: 16777217 }",
       "cache.last_recent.sinks: got 16777217, must be from 0 to 16777216"},
      {"protected_last_recent { protect_begin: 5 protect_end: 4 }",
       "cache.protected_last_recent.protect_end: got 4, must be from 5 to 1073741824"},
      {"protected_last_recent { max_protected_fraction: nan }",
       "cache.protected_last_recent.max_protected_fraction: got nan, must be from 0 to 1"},
      {"protected_last_recent { protect_until: 'a' protect_end: 4 }",
       "cache.protected_last_recent.protect_until: excludes protect_begin and protect_end"},
      {"protected_last_recent { protect_until: '(' }",
       "cache.protected_last_recent.protect_until: '(' is no regular expression of RE2: missing ): "
       "("},
      {"h2o { grace: 4294967295 }", "cache.h2o.grace: got 4294967295, must be from 0 to 16777216"},
      {"h2o { keep_initial_fraction: -0.1 }",
       "cache.h2o.keep_initial_fraction: got -0.1, must be from 0 to 1"},
      {"quantized_h2o { max_chunk: 1048577 }",
       "cache.quantized_h2o.max_chunk: got 1048577, must be from 0 to 1048576"},
      {"quantized_h2o { keep_initial_fraction: inf }",
       "cache.quantized_h2o.keep_initial_fraction: got inf, must be from 0 to 1"}};
  for (const auto& [text, complaint] : wrong) {
    const absl::Status status = Read(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_EQ(status.message(), complaint);
  }
}

}  // namespace
}  // namespace keyline
