#include "rpc/connection/listener.h"

#include <fcntl.h>
#include <glog/logging.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

constexpr int kBacklog = 512;

struct HostPort {
  std::string host;
  std::string port;
};

absl::StatusOr<HostPort> SplitAddress(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address '", address, "' must be host:port or [v6 address]:port, with a port up to 65535"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("address '", address, "': write a v6 address in brackets, [", host, "]"));
  }
  return HostPort{host, address.substr(colon + 1)};
}

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
  }
  return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr) != 0;
}

absl::Status BindError(const std::string& address, int error) {
  if (error == EADDRINUSE) {
    return absl::AlreadyExistsError(
        absl::StrCat("address ", address,
                     " is in use by another process; stop it or choose another "
                     "port (0 picks a free one)"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("address ", address, " cannot be bound: ", std::strerror(error)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listener>> Listener::Bind(const std::string& address) {
  ASSIGN_OR_RETURN(const HostPort parts, SplitAddress(address));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (int error = getaddrinfo(parts.host.c_str(), parts.port.c_str(), &hints, &found); error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("address ", address, " has no such host: ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> addresses(found, freeaddrinfo);

  std::unique_ptr<Listener> listener(new Listener);
  int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return BindError(address, errno);
  listener->socket_ = fd;
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));  // not held up by TIME_WAIT
  if (bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, kBacklog) != 0) {
    return BindError(address, errno);
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
  listener->port_ =
      ntohs(bound.ss_family == AF_INET ? reinterpret_cast<sockaddr_in*>(&bound)->sin_port
                                       : reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port);
  listener->loopback_ = IsLoopback(reinterpret_cast<sockaddr*>(&bound));
  listener->address_ = absl::StrCat(address.substr(0, address.rfind(':')), ":", listener->port_);
  listener->spare_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return listener;
}

Listener::~Listener() { Stop(); }

void Listener::Start(std::function<void(int)> on_connection) {
  on_connection_ = std::move(on_connection);
  thread_ = std::thread([this] { AcceptLoop(); });
}

void Listener::Stop() {
  if (socket_ < 0) return;
  shutdown(socket_, SHUT_RDWR);  // wakes accept
  if (thread_.joinable()) thread_.join();
  close(socket_);
  if (spare_ >= 0) close(spare_);
  socket_ = spare_ = -1;
}

void Listener::AcceptLoop() {
  while (true) {
    pollfd waiting = {socket_, POLLIN, 0};
    poll(&waiting, 1, -1);
    if ((waiting.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0) return;  // Stop
    const int fd = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      on_connection_(fd);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      TurnOneAway();
    }
    // Otherwise the connection was gone before it was accepted.
  }
}

void Listener::TurnOneAway() {
  LOG_EVERY_N(WARNING, 1000) << "address " << address_
                             << ": out of file descriptors or memory, turning connections away; "
                                "raise `ulimit -n`";
  if (spare_ >= 0) close(spare_);
  const int fd = accept4(socket_, nullptr, nullptr, SOCK_CLOEXEC);
  if (fd >= 0) {
    close(fd);
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // another thread took the spare
  }
  spare_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

}  // namespace keyline
