// ServedQueue: a FakeQueue behind a Server on a free port, and a client of it: what most tests of
// this folder start with.
#pragma once

#include <memory>
#include <string>

#include "rpc/client/client.h"
#include "rpc/server/server.h"
#include "tests/rpc/byte_tokenizer.h"
#include "tests/rpc/fake_queue.h"

namespace keyline::testing {

// A model of two layers that ByteTokenizer suits, on two ranks.
ServerFacts TestFacts();

// A text prompt and a number of tokens.
v1::GenerateRequest TextRequest(const std::string& text, int max_new_tokens);

class ServedQueue {
 public:
  explicit ServedQueue(const FakeQueue::Options& queue_options = {},
                       ServeOptions serve_options = {});

  FakeQueue& queue() { return queue_; }
  Server& server() { return *server_; }
  Client& client() { return *client_; }
  const std::string& address() const { return server_->address(); }
  // Another connection.
  std::unique_ptr<Client> NewClient(const ClientOptions& options = {}) const;

 private:
  ByteTokenizer tokenizer_;
  FakeQueue queue_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<Client> client_;
};

}  // namespace keyline::testing
