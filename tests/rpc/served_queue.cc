#include "tests/rpc/served_queue.h"

#include <glog/logging.h>

#include <utility>

namespace keyline::testing {

ServerFacts TestFacts() {
  ServerFacts facts;
  facts.version = "1.2.3";
  facts.model.name = "tiny";
  facts.model.family = "llama";
  facts.model.layers = 2;
  facts.model.heads = 4;
  facts.model.kv_heads = 2;
  facts.model.head_dim = 8;
  facts.model.hidden_size = 32;
  facts.model.vocab_size = 258;
  facts.model.max_positions = 4096;
  facts.model.eos_token_ids = {257};
  facts.model.bos_token_id = 256;
  facts.dtype = "f32";
  facts.weight_bytes = 1000;
  facts.cache.policy.policy = "h2o_vnorm";
  facts.cache.policy.cache_length = {64};
  facts.cache.policy.chunk_size = 16;
  facts.cache.policy.grace = 8;
  facts.cache.enabled = {"h2o_vnorm", "last_recent"};
  facts.cache.storage = "int8";
  facts.cache.lanes = 16;
  facts.lane_bytes = 4096;
  facts.stages = {{.rank = 0,
                   .host = "a",
                   .device = "cpu",
                   .first_layer = 0,
                   .layers = 1,
                   .has_embedding = true,
                   .weight_bytes = 600,
                   .kv_bytes = 32768,
                   .workspace_bytes = 10},
                  {.rank = 1,
                   .host = "b",
                   .device = "cuda:1",
                   .first_layer = 1,
                   .layers = 1,
                   .has_head = true,
                   .weight_bytes = 400,
                   .kv_bytes = 32768,
                   .workspace_bytes = 20}};
  return facts;
}

v1::GenerateRequest TextRequest(const std::string& text, int max_new_tokens) {
  v1::GenerateRequest request;
  request.mutable_prompt()->set_text(text);
  request.mutable_stopping()->set_max_new_tokens(max_new_tokens);
  return request;
}

ServedQueue::ServedQueue(const FakeQueue::Options& queue_options, ServeOptions serve_options)
    : queue_(queue_options) {
  serve_options.address = "127.0.0.1:0";
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(serve_options, TestFacts(), &tokenizer_, queue_);
  CHECK(server.ok()) << server.status().ToString();
  server_ = *std::move(server);
  ClientOptions once;
  once.max_attempts = 1;  // tests see every refusal
  client_ = NewClient(once);
}

std::unique_ptr<Client> ServedQueue::NewClient(const ClientOptions& options) const {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(address(), options);
  CHECK(client.ok()) << client.status().ToString();
  return *std::move(client);
}

}  // namespace keyline::testing
