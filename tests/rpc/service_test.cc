// The unary calls, Control, and what refusals carry.
#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/time/clock.h"
#include "keyline/v1/inference.grpc.pb.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using testing::ServedQueue;
using testing::TextRequest;

constexpr absl::Duration kPatience = absl::Seconds(20);

TEST(Generate, IsTheSumOfItsEvents) {
  ServedQueue served;
  v1::GenerateRequest request = TextRequest("hi", 30);
  request.mutable_response()->set_logprobs(true);
  request.mutable_response()->set_top_logprobs(2);
  request.mutable_sampling()->set_seed(5);
  const absl::StatusOr<v1::GenerateResponse> answer = served.client().Generate(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->prompt_info().prompt_tokens(), 3);
  EXPECT_EQ(answer->prompt_info().seed(), 5);
  EXPECT_EQ(answer->output().first_index(), 0);
  EXPECT_EQ(answer->output().text(), "abcdefghijklmnopqrstuvwxyzabcd");
  ASSERT_EQ(answer->output().token_ids_size(), 30);
  EXPECT_EQ(answer->output().token_ids(27), 'b');
  ASSERT_EQ(answer->output().logprobs_size(), 30);
  EXPECT_EQ(answer->output().logprobs(3), -0.5f);
  ASSERT_EQ(answer->output().top_logprobs_size(), 30);
  EXPECT_EQ(answer->output().top_logprobs(1).token_ids(0), 'b');
  EXPECT_EQ(answer->output().top_logprobs(1).token_ids(1), 'z');
  EXPECT_EQ(answer->output().top_logprobs(1).logprobs(1), -2.0f);
  EXPECT_EQ(answer->finish().usage().new_tokens(), 30);
  EXPECT_EQ(answer->finish().reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_GT(answer->finish().timings().total().nanos(), 0);
  EXPECT_FALSE(answer->finish().has_cache());
}

TEST(Generate, ADeadlineFreesTheLane) {
  ServedQueue served;
  EXPECT_EQ(
      served.client()
          .Generate(TextRequest("x", 1 << 20), {.deadline = absl::Now() + absl::Milliseconds(80)})
          .status()
          .code(),
      absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(served.queue().WaitIdle(kPatience));
}

TEST(Generate, BadFieldsAreInvalidArgumentOverTheWire) {
  ServedQueue served;
  v1::GenerateRequest request = TextRequest("x", 3);
  request.mutable_sampling()->set_top_p(2);
  const absl::Status status = served.client().Generate(request).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "sampling.top_p: got 2, must be from 0 to 1");
  EXPECT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.BadRequest").has_value());
  EXPECT_EQ(served.queue().load().requests_accepted, 0);
}

TEST(Generate, AFullQueueSaysWhenToTryAgain) {
  ServeOptions options;
  options.retry_delay = absl::Milliseconds(1500);
  ServedQueue served({.lanes = 1, .max_waiting = 0}, options);
  const absl::Status status = served.client().Generate(TextRequest("x", 3)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryDelay(status), absl::Milliseconds(1500));

  // What gRPC's own retry policies obey.
  auto stub = v1::Inference::NewStub(
      grpc::CreateChannel(served.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto reader = stub->GenerateStream(&context, TextRequest("x", 3));
  v1::GenerateEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto pushback = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, trailers.end());
  EXPECT_EQ(std::string(pushback->second.data(), pushback->second.size()), "1500");
}

TEST(Generate, TooLargeARequestIsRefusedWithoutRetryInfo) {
  ServedQueue served;
  const absl::Status status = served.client()
                                  .Generate(TextRequest(std::string((64 << 20) + 1, 'x'), 1),
                                            {.deadline = absl::Now() + absl::Seconds(60)})
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(RetryDelay(status).has_value());
}

TEST(Generate, TooLongATextIsInvalid) {
  ServedQueue served;
  EXPECT_EQ(
      served.client().Generate(TextRequest(std::string((4 << 20) + 1, 'x'), 1)).status().message(),
      "prompt.text: got 4194305 bytes, at most 4194304");
}

// Protobuf checks text in most languages before it is sent, but not in C++.
TEST(Generate, TextThatIsNotUtf8IsRefusedByFieldAndOffset) {
  ServedQueue served;
  EXPECT_THAT(std::string(served.client().Generate(TextRequest("ab\xff", 1)).status().message()),
              ::testing::AllOf(::testing::StartsWith("prompt.text: "), ::testing::HasSubstr("2")));
  v1::GenerateRequest chat;
  chat.mutable_prompt()->mutable_chat()->add_messages()->set_content("\xc3");
  EXPECT_THAT(std::string(served.client().Generate(chat).status().message()),
              ::testing::StartsWith("prompt.chat.messages.content: "));
  v1::TokenizeRequest tokenize;
  tokenize.mutable_prompt()->set_text("\xff");
  EXPECT_EQ(served.client().Tokenize(tokenize).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Generate, BytesThatAreNoRequestAreRefused) {
  ServedQueue served;
  grpc::GenericStub stub(grpc::CreateChannel(served.address(), grpc::InsecureChannelCredentials()));
  for (const std::string& bytes :
       {std::string("\x1a\x04\x0a\x02\xff\xfe", 6),  // prompt.text
        std::string("\x1a\xff\xff\xff\xff\x0f", 6), std::string(7, '\xff')}) {
    grpc::Slice slice(bytes);
    grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    auto call = stub.PrepareUnaryCall(&context, "/keyline.v1.Inference/Generate", request, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) {
    }
  }
}

TEST(Score, ReturnsTokensAndTheirLogprobs) {
  ServedQueue served;
  v1::ScoreRequest request;
  request.mutable_prompt()->set_text("abc");
  request.set_decode_tail(2);
  request.set_cache_report(true);
  const absl::StatusOr<v1::ScoreResponse> answer = served.client().Score(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(answer->token_ids(), ::testing::ElementsAre(256, 'a', 'b', 'c'));
  EXPECT_THAT(answer->logprobs(), ::testing::ElementsAre(-1.5f, -1.5f, -1.5f));
  EXPECT_EQ(answer->usage().prompt_tokens(), 4);
  EXPECT_EQ(answer->cache().policy(), "h2o");
  EXPECT_EQ(answer->cache().storage(), "int8");
  EXPECT_EQ(answer->cache().lane_bytes(), 4096);
  EXPECT_EQ(served.queue().last_request().score.decode_tail, 2);
}

TEST(Embed, ReturnsTheStateAndWhatWasAsked) {
  ServedQueue served;
  v1::EmbedRequest request;
  request.mutable_prompt()->set_text("abc");
  request.set_layer(1);
  request.set_pooling(v1::POOLING_MEAN);
  const absl::StatusOr<v1::EmbedResponse> answer = served.client().Embed(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(answer->values(), ::testing::ElementsAre(0.25f, -1.0f));
  EXPECT_EQ(answer->layer(), 1);
  EXPECT_EQ(answer->pooling(), v1::POOLING_MEAN);
  EXPECT_EQ(answer->usage().prompt_tokens(), 4);
  EXPECT_FALSE(answer->has_cache());
  EXPECT_EQ(served.queue().last_request().embed.layer, 1);
  request.set_layer(9);
  EXPECT_EQ(served.client().Embed(request).status().message(), "layer: got 9, must be from 0 to 2");
}

TEST(Tokenize, ThereAndBack) {
  ServedQueue served;
  v1::TokenizeRequest request;
  request.mutable_prompt()->set_text("a<end>");
  request.mutable_prompt()->set_parse_special(true);
  const absl::StatusOr<v1::TokenizeResponse> tokens = served.client().Tokenize(request);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(tokens->token_ids(), ::testing::ElementsAre(256, 'a', 257));

  v1::DetokenizeRequest back;
  *back.mutable_token_ids() = tokens->token_ids();
  absl::StatusOr<v1::DetokenizeResponse> text = served.client().Detokenize(back);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->text(), "a");
  back.set_keep_special(true);
  text = served.client().Detokenize(back);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->text(), "<bos>a<end>");

  back.add_token_ids(999);
  EXPECT_EQ(served.client().Detokenize(back).status().message(),
            "token_ids[3]: got 999, must be below the vocabulary's size of 258");
  request.mutable_prompt()->mutable_token_ids()->add_ids(1);
  EXPECT_EQ(served.client().Tokenize(request).status().message(),
            "prompt: has token_ids, must be one of text, chat");
}

TEST(Control, TellsTheFacts) {
  ServedQueue served;
  const absl::StatusOr<v1::GetModelInfoResponse> model = served.client().GetModelInfo();
  ASSERT_TRUE(model.ok()) << model.status();
  v1::GetModelInfoResponse expected;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(R"(
    name: "tiny" family: "llama" dtype: "f32" layers: 2 heads: 4 kv_heads: 2 head_dim: 8
    hidden_size: 32 vocab_size: 258 max_positions: 4096 weight_bytes: 1000 has_tokenizer: true
    eos_token_ids: 257 bos_token_id: 256
    default_cache { cache_length: 64 chunk_size: 16
      h2o { value_norms: true normalize_scores: false grace: 8 keep_initial_fraction: 0.05
            max_chunk: 0 } }
    enabled_policies: "h2o_vnorm" enabled_policies: "last_recent"
    storage: "int8" lanes: 16 lane_bytes: 4096)",
                                                            &expected));
  EXPECT_EQ(model->DebugString(), expected.DebugString());

  const absl::StatusOr<v1::GetPlacementResponse> placement = served.client().GetPlacement();
  ASSERT_TRUE(placement.ok()) << placement.status();
  v1::GetPlacementResponse stages;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(R"(
    stages { rank: 0 host: "a" device: "cpu" first_layer: 0 layers: 1 has_embedding: true
             weight_bytes: 600 kv_bytes: 32768 workspace_bytes: 10 }
    stages { rank: 1 host: "b" device: "cuda:1" first_layer: 1 layers: 1 has_head: true
             weight_bytes: 400 kv_bytes: 32768 workspace_bytes: 20 })",
                                                            &stages));
  EXPECT_EQ(placement->DebugString(), stages.DebugString());

  const absl::StatusOr<v1::GetServerInfoResponse> server = served.client().GetServerInfo();
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(server->version(), "1.2.3");
  EXPECT_FALSE(server->draining());
  EXPECT_EQ(server->max_request_bytes(), 64 << 20);
  EXPECT_EQ(server->max_text_bytes(), 4 << 20);
}

TEST(Control, TellsTheLoad) {
  ServedQueue served({.lanes = 1});
  const std::unique_ptr<EventStream> first =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  v1::GenerateEvent event;
  ASSERT_TRUE(first->Next(&event));
  const std::unique_ptr<EventStream> second =
      served.client().GenerateStream(TextRequest("x", 1 << 20));
  while (served.queue().load().waiting == 0) absl::SleepFor(absl::Milliseconds(1));
  const absl::StatusOr<v1::GetLoadResponse> load = served.client().GetLoad();
  ASSERT_TRUE(load.ok()) << load.status();
  EXPECT_EQ(load->lanes(), 1);
  EXPECT_EQ(load->running(), 1);
  EXPECT_EQ(load->waiting(), 1);
  EXPECT_EQ(load->requests_accepted(), 2);
  EXPECT_GT(load->steps(), 0);
  EXPECT_FALSE(load->draining());
}

}  // namespace
}  // namespace keyline
