// Server: the gRPC front of a RequestQueue: keyline.v1.Inference, Sessions and Control, health and
// reflection on one port. launch makes one on rank 0; its own threads serve it. No gRPC in this
// header.
//
// A server's end: BeginDrain at SIGTERM, the engine runs dry meanwhile, then Shutdown.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/server/server_facts.h"
#include "runtime/engine/request_queue.h"
#include "runtime/text/tokenizer.h"

namespace keyline {

struct ServeOptions {
  // "host:port" or "[v6]:port"; port 0 picks a free one.
  std::string address = "127.0.0.1:50051";
  // Allows an address other than loopback without TLS.
  bool insecure = false;

  // PEM files; certificate and key go together. With `client_ca_file` clients must show a
  // certificate of that authority. All are read again when they change.
  std::string certificate_file;
  std::string key_file;
  std::string client_ca_file;
  // One bearer token a line; calls without one of them end with UNAUTHENTICATED. Needs TLS. Health
  // checks need a token too.
  std::string token_file;

  // A stream's new tokens that wait for its client; more end it with RESOURCE_EXHAUSTED.
  int max_pending_tokens = 4096;
  // Of one text or chat prompt. It is tokenised on one of gRPC's few threads, whose other calls
  // wait: a second or less for this many bytes, which are more than most contexts hold.
  int64_t max_text_bytes = 4 << 20;
  // What a client is told to wait for when the queue is full or the server drains.
  absl::Duration retry_delay = absl::Seconds(1);
  // Control.Drain: called once, from a gRPC thread, and must not wait; the server has stopped
  // taking work by then. Null: `queue.Drain()`.
  std::function<void()> on_drain;
};

class Server {
 public:
  // Binds, serves, is ready. `queue` and `tokenizer` (may be null: prompts are token ids only) must
  // outlive the server.
  // ALREADY_EXISTS where another process has the address (launch exits with 76); INVALID_ARGUMENT
  // for options that contradict each other or an address that cannot be bound; NOT_FOUND for
  // unreadable files.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const ServeOptions& options,
                                                       const ServerFacts& facts,
                                                       const Tokenizer* tokenizer,
                                                       RequestQueue& queue);
  virtual ~Server() = default;

  virtual int port() const = 0;
  virtual const std::string& address() const = 0;  // as it was bound: "127.0.0.1:50051"

  // Health of keyline.v1.Inference is NOT_SERVING at once and new calls get UNAVAILABLE; running
  // ones go on. Any thread; returns at once; again is harmless.
  virtual void BeginDrain() = 0;
  // BeginDrain, then waits up to `limit` for running calls, then cancels what is left and stops.
  // Once, not from a gRPC thread. True if nothing had to be cancelled. The destructor shuts down
  // with no patience.
  virtual bool Shutdown(absl::Duration limit) = 0;
};

}  // namespace keyline
