// Listener: the server's own listening socket and accept loop; connections are handed to gRPC.
//
// gRPC 1.51's own listener stays deaf for good once accept has failed with EMFILE, and lets a
// second server bind the same port. This one keeps a spare descriptor, with which it turns a
// connection away when there are no more, and says why an address cannot be bound.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"

namespace keyline {

class Listener {
 public:
  // "host:port" or "[v6]:port"; port 0 picks a free one. Connections wait in the kernel until
  // Start. ALREADY_EXISTS where the address is in use, INVALID_ARGUMENT where it cannot be bound at
  // all.
  static absl::StatusOr<std::unique_ptr<Listener>> Bind(const std::string& address);
  ~Listener();

  // `on_connection` owns the socket that it is given, runs on the listener's thread and must not
  // wait.
  void Start(std::function<void(int socket)> on_connection);
  // After it returns no connection comes in. Again is harmless.
  void Stop();

  const std::string& address() const { return address_; }  // with the port that was bound
  int port() const { return port_; }
  bool loopback() const { return loopback_; }

 private:
  Listener() = default;
  void AcceptLoop();
  void TurnOneAway();

  int socket_ = -1;
  int spare_ = -1;  // closed to accept, and close, one connection when descriptors have run out
  std::string address_;
  int port_ = 0;
  bool loopback_ = false;
  std::function<void(int)> on_connection_;
  std::thread thread_;
};

}  // namespace keyline
