// Every field of a request: what it becomes, and the exact complaint when it is out of bounds.
#include "rpc/wire/request_from_proto.h"

#include <glog/logging.h>
#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "rpc/wire/status_to_grpc.h"
#include "tests/rpc/byte_tokenizer.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;

RequestRules Rules() {
  static const auto* const kTokenizer = new testing::ByteTokenizer;
  RequestRules rules;
  rules.model = "tiny";
  rules.vocab_size = 258;
  rules.layers = 2;
  rules.default_cache.policy = "h2o";
  rules.default_cache.cache_length = {64};
  rules.tokenizer = kTokenizer;
  rules.max_text_bytes = 100;
  return rules;
}

template <typename Message>
Message Parse(const std::string& text) {
  Message message;
  CHECK(google::protobuf::TextFormat::ParseFromString(text, &message)) << text;
  return message;
}

absl::StatusOr<Request> Generate(const std::string& text, const RequestRules& rules = Rules()) {
  return RequestFromProto(Parse<v1::GenerateRequest>(text), rules);
}

absl::StatusOr<Request> Score(const std::string& text) {
  return RequestFromProto(Parse<v1::ScoreRequest>(text), Rules());
}

TEST(RequestFromProto, UnsetFieldsTakeTheDocumentedDefaults) {
  const absl::StatusOr<Request> request = Generate("prompt { text: 'hi' }");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->prompt, ElementsAre(256, 'h', 'i'));
  EXPECT_EQ(request->label, "");
  EXPECT_EQ(request->sampling.temperature, 0);
  EXPECT_EQ(request->sampling.top_k, 0);
  EXPECT_EQ(request->sampling.top_p, 1);
  EXPECT_EQ(request->sampling.min_p, 0);
  EXPECT_EQ(request->stop.max_new_tokens, 256);
  EXPECT_EQ(request->stop.min_new_tokens, 0);
  EXPECT_FALSE(request->stop.ignore_eos);
  EXPECT_FALSE(request->stop.include_stop);
  EXPECT_TRUE(request->response.text);
  EXPECT_FALSE(request->response.logprobs);
  EXPECT_FALSE(request->response.cache_report);
  EXPECT_FALSE(request->cache.has_value());
  EXPECT_FALSE(request->score.enabled);
  EXPECT_EQ(request->deadline, absl::InfiniteFuture());
}

TEST(RequestFromProto, EveryFieldArrives) {
  const absl::StatusOr<Request> request = Generate(R"(
    request_id: 'job 7' model: 'tiny'
    prompt { text: 'a<end>' add_bos: false parse_special: true }
    sampling { temperature: 0.5 top_k: 40 top_p: 0.9 min_p: 0.05 seed: 11 }
    stopping { max_new_tokens: 9 min_new_tokens: 2 stop_token_ids: [3, 257] stop_strings: 'END'
               ignore_eos: true include_stop: true }
    response { text: false logprobs: true top_logprobs: 5 cache_report: true }
    cache { last_recent { sinks: 2 } })");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->label, "job 7");
  EXPECT_THAT(request->prompt, ElementsAre('a', 257));
  EXPECT_EQ(request->sampling.temperature, 0.5f);
  EXPECT_EQ(request->sampling.top_k, 40);
  EXPECT_EQ(request->sampling.top_p, 0.9f);
  EXPECT_EQ(request->sampling.min_p, 0.05f);
  EXPECT_EQ(request->sampling.seed, 11);
  EXPECT_EQ(request->stop.max_new_tokens, 9);
  EXPECT_EQ(request->stop.min_new_tokens, 2);
  EXPECT_THAT(request->stop.stop_token_ids, ElementsAre(3, 257));
  EXPECT_THAT(request->stop.stop_strings, ElementsAre("END"));
  EXPECT_TRUE(request->stop.ignore_eos);
  EXPECT_TRUE(request->stop.include_stop);
  EXPECT_FALSE(request->response.text);
  EXPECT_TRUE(request->response.logprobs);
  EXPECT_EQ(request->response.top_logprobs, 5);
  EXPECT_TRUE(request->response.cache_report);
  ASSERT_TRUE(request->cache.has_value());
  EXPECT_EQ(request->cache->policy, "last_recent");
}

TEST(RequestFromProto, SeedsThatWereNotGivenDiffer) {
  EXPECT_NE(Generate("prompt { text: 'hi' }")->sampling.seed,
            Generate("prompt { text: 'hi' }")->sampling.seed);
}

TEST(RequestFromProto, TopKBeyondTheVocabularyIsAllOfIt) {
  EXPECT_EQ(Generate("prompt { text: 'a' } sampling { top_k: 257 }")->sampling.top_k, 257);
  EXPECT_EQ(Generate("prompt { text: 'a' } sampling { top_k: 258 }")->sampling.top_k, 0);
  EXPECT_EQ(Generate("prompt { text: 'a' } sampling { top_k: 4294967295 }")->sampling.top_k, 0);
}

TEST(RequestFromProto, ScoreArrives) {
  const absl::StatusOr<Request> request = Score(
      "request_id: 's' prompt { token_ids { ids: [1, 2, 3] } } decode_tail: 3 cache_report: true");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->prompt, ElementsAre(1, 2, 3));
  EXPECT_TRUE(request->score.enabled);
  EXPECT_EQ(request->score.decode_tail, 3);
  EXPECT_TRUE(request->response.cache_report);
  EXPECT_FALSE(request->response.text);
}

absl::StatusOr<Request> Embed(const std::string& text) {
  return RequestFromProto(Parse<v1::EmbedRequest>(text), Rules());
}

TEST(RequestFromProto, EmbedArrives) {
  const absl::StatusOr<Request> plain = Embed("prompt { token_ids { ids: [1, 2, 3] } }");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_TRUE(plain->embed.enabled);
  EXPECT_EQ(plain->embed.layer, Rules().layers);
  EXPECT_EQ(plain->embed.pooling, Pooling::kLast);
  EXPECT_FALSE(plain->response.text);
  EXPECT_FALSE(plain->cache.has_value());
  const absl::StatusOr<Request> full = Embed(
      "request_id: 'e' prompt { text: 'a' } layer: 0 pooling: POOLING_MEAN cache_report: true "
      "cache { last_recent {} }");
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->label, "e");
  EXPECT_EQ(full->embed.layer, 0);
  EXPECT_EQ(full->embed.pooling, Pooling::kMean);
  EXPECT_TRUE(full->response.cache_report);
  EXPECT_EQ(full->cache->policy, "last_recent");
}

TEST(RequestFromProto, EmbedIsBounded) {
  const std::string prompt = "prompt { token_ids { ids: 1 } } ";
  EXPECT_EQ(Embed(prompt + "layer: 3").status().message(), "layer: got 3, must be from 0 to 2");
  EXPECT_EQ(Embed(prompt + "pooling: POOLING_UNSPECIFIED").status().message(),
            "pooling: got 0, must be POOLING_LAST or POOLING_MEAN");
  v1::EmbedRequest unknown = Parse<v1::EmbedRequest>(prompt);
  unknown.set_pooling(static_cast<v1::Pooling>(7));
  EXPECT_EQ(RequestFromProto(unknown, Rules()).status().message(),
            "pooling: got 7, must be POOLING_LAST or POOLING_MEAN");
  EXPECT_EQ(Embed("layer: 1").status().code(), absl::StatusCode::kInvalidArgument);
}

struct Wrong {
  std::string request;
  std::string complaint;
};
void PrintTo(const Wrong& wrong, std::ostream* out) { *out << wrong.request; }

class WrongGenerate : public ::testing::TestWithParam<Wrong> {};

TEST_P(WrongGenerate, IsRefusedByName) {
  const absl::Status status = Generate(GetParam().request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), GetParam().complaint);
}

const std::string kPrompt = "prompt { text: 'a' } ";

INSTANTIATE_TEST_SUITE_P(
    Fields, WrongGenerate,
    ::testing::Values(
        Wrong{"", "prompt: not set, must be one of text, token_ids, chat"},
        Wrong{"prompt {}", "prompt: not set, must be one of text, token_ids, chat"},
        Wrong{"prompt { token_ids {} }", "prompt: is empty, must give at least 1 token"},
        Wrong{"prompt { text: '' add_bos: false }", "prompt: is empty, must give at least 1 token"},
        Wrong{"prompt { text: '" + std::string(101, 'x') + "' }",
              "prompt.text: got 101 bytes, at most 100"},
        Wrong{"prompt { token_ids { ids: [1, 258] } }",
              "prompt.token_ids.ids[1]: got 258, must be below the vocabulary's size of 258"},
        Wrong{
            "prompt { token_ids { ids: 4294967295 } }",
            "prompt.token_ids.ids[0]: got 4294967295, must be below the vocabulary's size of 258"},
        Wrong{"prompt { token_ids { ids: 1 } add_bos: true }",
              "prompt.add_bos: applies to prompt.text only"},
        Wrong{"prompt { token_ids { ids: 1 } parse_special: false }",
              "prompt.parse_special: applies to prompt.text only"},
        Wrong{
            "prompt { chat { messages { role: 'user' content: '" + std::string(97, 'x') + "' } } }",
            "prompt.chat: got 101 bytes, at most 100"},
        Wrong{kPrompt + "request_id: '" + std::string(129, 'x') + "'",
              "request_id: got 129 bytes, at most 128"},
        Wrong{kPrompt + "request_id: 'a\\nb'", "request_id: byte 1 is not printable ASCII"},
        Wrong{kPrompt + "sampling { temperature: -0.5 }",
              "sampling.temperature: got -0.5, must be from 0 to 100"},
        Wrong{kPrompt + "sampling { temperature: 101 }",
              "sampling.temperature: got 101, must be from 0 to 100"},
        Wrong{kPrompt + "sampling { temperature: nan }",
              "sampling.temperature: got nan, must be from 0 to 100"},
        Wrong{kPrompt + "sampling { temperature: inf }",
              "sampling.temperature: got inf, must be from 0 to 100"},
        Wrong{kPrompt + "sampling { top_p: 0 }",
              "sampling.top_p: got 0, must be above 0 and at most 1"},
        Wrong{kPrompt + "sampling { top_p: 1.5 }", "sampling.top_p: got 1.5, must be from 0 to 1"},
        Wrong{kPrompt + "sampling { top_p: nan }", "sampling.top_p: got nan, must be from 0 to 1"},
        Wrong{kPrompt + "sampling { min_p: -1 }", "sampling.min_p: got -1, must be from 0 to 1"},
        Wrong{kPrompt + "stopping { max_new_tokens: 0 }",
              "stopping.max_new_tokens: got 0, must be from 1 to 16777216"},
        Wrong{kPrompt + "stopping { max_new_tokens: 4294967295 }",
              "stopping.max_new_tokens: got 4294967295, must be from 1 to 16777216"},
        Wrong{kPrompt + "stopping { max_new_tokens: 4 min_new_tokens: 5 }",
              "stopping.min_new_tokens: got 5, must be from 0 to 4"},
        Wrong{kPrompt + "stopping { min_new_tokens: 257 }",
              "stopping.min_new_tokens: got 257, must be from 0 to 256"},
        Wrong{kPrompt + "stopping { stop_token_ids: 300 }",
              "stopping.stop_token_ids[0]: got 300, must be below the vocabulary's size of 258"},
        Wrong{kPrompt + "stopping { stop_strings: '' }",
              "stopping.stop_strings[0]: got 0 bytes, must be from 1 to 256"},
        Wrong{kPrompt + "stopping { stop_strings: ['a', '" + std::string(257, 'x') + "'] }",
              "stopping.stop_strings[1]: got 257 bytes, must be from 1 to 256"},
        Wrong{kPrompt + "response { logprobs: true top_logprobs: 21 }",
              "response.top_logprobs: got 21, must be from 0 to 20"},
        Wrong{kPrompt + "response { top_logprobs: 2 }",
              "response.top_logprobs: needs response.logprobs"},
        Wrong{kPrompt + "cache {}",
              "cache.policy: not set, must be one of dense, last_recent, protected_last_recent, "
              "h2o, quantized_h2o"}));

TEST(RequestFromProto, TooManyStops) {
  v1::GenerateRequest request = Parse<v1::GenerateRequest>(kPrompt);
  for (int i = 0; i < 65; ++i) request.mutable_stopping()->add_stop_token_ids(1);
  EXPECT_EQ(RequestFromProto(request, Rules()).status().message(),
            "stopping.stop_token_ids: got 65, at most 64");
  request.mutable_stopping()->clear_stop_token_ids();
  for (int i = 0; i < 17; ++i) request.mutable_stopping()->add_stop_strings(std::string(1, 'x'));
  EXPECT_EQ(RequestFromProto(request, Rules()).status().message(),
            "stopping.stop_strings: got 17, at most 16");
}

TEST(RequestFromProto, TheTokenizersComplaintNamesTheField) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text("ab\xFF");
  EXPECT_EQ(RequestFromProto(request, Rules()).status(),
            FieldError("prompt.text", "not UTF-8 at byte 2"));
}

TEST(RequestFromProto, ChatWithoutATemplateIsInvalid) {
  const absl::Status status =
      Generate("prompt { chat { messages { role: 'user' content: 'x' } } }").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith("prompt.chat: "));
}

TEST(RequestFromProto, AnotherModelIsNotFound) {
  const absl::Status status = Generate(kPrompt + "model: 'other'").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "model: 'other' is not served here, but 'tiny' is");
}

TEST(RequestFromProto, WithoutATokenizerOnlyTokenIdsWork) {
  RequestRules rules = Rules();
  rules.tokenizer = nullptr;
  EXPECT_EQ(Generate(kPrompt, rules).status().message(),
            "prompt.text: this server has no tokenizer; give prompt.token_ids");
  const std::string ids = "prompt { token_ids { ids: 1 } } ";
  EXPECT_EQ(Generate(ids + "response { text: true }", rules).status().message(),
            "response.text: this server has no tokenizer; leave text unset and read token_ids");
  EXPECT_EQ(Generate(ids + "stopping { stop_strings: 'x' }", rules).status().message(),
            "stopping.stop_strings: this server has no tokenizer; give stop_token_ids");
  const absl::StatusOr<Request> request = Generate(ids, rules);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_FALSE(request->response.text);
}

TEST(RequestFromProto, DecodeTailIsAtMostThePrompt) {
  EXPECT_EQ(Score("prompt { token_ids { ids: [1, 2] } } decode_tail: 3").status().message(),
            "decode_tail: got 3, must be from 0 to 2");
}

TEST(StatusToGrpc, KeepsNumberMessageAndDetails) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        StatusToGrpc(absl::Status(static_cast<absl::StatusCode>(code), "why"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "why");
    EXPECT_EQ(status.error_details(), "");
  }
  EXPECT_TRUE(StatusToGrpc(absl::OkStatus()).ok());

  absl::Status refused = FieldError("a.b", "is wrong");
  SetRetryDelay(refused, absl::Milliseconds(1250));
  const grpc::Status status = StatusToGrpc(refused);
  EXPECT_EQ(status.error_message(), "a.b: is wrong");
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), 3);
  int found = 0;
  for (const google::protobuf::Any& detail : details.details()) {
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&bad)) {
      ++found;
      ASSERT_EQ(bad.field_violations_size(), 1);
      EXPECT_EQ(bad.field_violations(0).field(), "a.b");
      EXPECT_EQ(bad.field_violations(0).description(), "is wrong");
    }
    if (detail.UnpackTo(&retry)) {
      ++found;
      EXPECT_EQ(retry.retry_delay().seconds(), 1);
      EXPECT_EQ(retry.retry_delay().nanos(), 250000000);
    }
  }
  EXPECT_EQ(found, 2);
}

TEST(StatusToGrpc, LongMessagesAreCutBetweenCharacters) {
  const std::string text = "x" + [] {
    std::string s;
    for (int i = 0; i < 2000; ++i) s += "\u00e9";
    return s;
  }();
  EXPECT_EQ(StatusToGrpc(absl::InternalError(text)).error_message(), text.substr(0, 1023));
}

}  // namespace
}  // namespace keyline
