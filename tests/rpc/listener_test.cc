// Addresses: which are taken, which are refused and why; running out of descriptors.
#include "rpc/connection/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "tests/rpc/served_queue.h"

namespace keyline {
namespace {

using testing::FakeQueue;
using testing::ServedQueue;
using testing::TestFacts;

absl::Status StartAt(const ServeOptions& options) {
  FakeQueue queue;
  return Server::Start(options, TestFacts(), nullptr, queue).status();
}

absl::Status StartAt(const std::string& address) {
  ServeOptions options;
  options.address = address;
  return StartAt(options);
}

TEST(Address, ASecondServerOnThePortFails) {
  ServedQueue served;
  const absl::Status status = StartAt(served.address());
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(
      std::string(status.message()),
      "address " + served.address() +
          " is in use by another process; stop it or choose another port (0 picks a free one)");
}

TEST(Address, IsFreeAgainAtOnce) {
  std::string address;
  {
    ServedQueue served;
    address = served.address();
    EXPECT_TRUE(served.client().GetLoad().ok());
  }
  EXPECT_EQ(StartAt(address), absl::OkStatus());
}

TEST(Address, PortZeroPicksOne) {
  ServedQueue served;
  EXPECT_GT(served.server().port(), 0);
  EXPECT_EQ(served.address(), "127.0.0.1:" + std::to_string(served.server().port()));
}

TEST(Address, OthersThanLoopbackNeedTlsOrInsecure) {
  const absl::Status status = StartAt("0.0.0.0:0");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(status.message()),
      ::testing::HasSubstr("can be reached from other machines: give a certificate and a key "
                           "for TLS, or --insecure, or a loopback address"));
  ServeOptions options;
  options.address = "0.0.0.0:0";
  options.insecure = true;
  EXPECT_EQ(StartAt(options), absl::OkStatus());
  EXPECT_EQ(StartAt("localhost:0"), absl::OkStatus());
}

TEST(Address, NonsenseIsInvalid) {
  for (const char* address :
       {"", "localhost", ":50051", "localhost:", "localhost:x", "localhost:65536", "localhost:-1",
        "::1:50051", "256.0.0.1:0", "198.51.100.7:0"}) {
    const absl::Status status = Listener::Bind(address).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr(address));
  }
}

int Connect(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) return fd;
  close(fd);
  return -1;
}

// All of the process' descriptors are taken while connections come in: they are turned away, and
// once there are descriptors again the listener still listens.
TEST(Listener, OutlivesRunningOutOfDescriptors) {
  absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Bind("127.0.0.1:0");
  ASSERT_TRUE(listener.ok()) << listener.status();
  std::atomic<int> accepted = 0;
  (*listener)->Start([&](int fd) {
    close(fd);
    ++accepted;
  });

  std::vector<int> clients;
  for (int i = 0; i < 8; ++i) clients.push_back(socket(AF_INET, SOCK_STREAM, 0));
  rlimit before{};
  getrlimit(RLIMIT_NOFILE, &before);
  rlimit low = before;
  low.rlim_cur = 64;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  std::vector<int> taken;
  for (int fd; (fd = open("/dev/null", O_RDONLY)) >= 0;) taken.push_back(fd);

  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons((*listener)->port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  for (const int fd : clients) {
    ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    char byte;
    EXPECT_LE(read(fd, &byte, 1), 0) << "turned away";
  }
  EXPECT_EQ(accepted, 0);
  for (const int fd : clients) close(fd);
  for (const int fd : taken) close(fd);
  setrlimit(RLIMIT_NOFILE, &before);

  const int fd = Connect((*listener)->port());
  ASSERT_GE(fd, 0);
  for (int i = 0; i < 5000 && accepted == 0; ++i) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(accepted, 1);
  close(fd);
}

TEST(Listener, AfterStopNobodyIsThere) {
  absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Bind("127.0.0.1:0");
  ASSERT_TRUE(listener.ok()) << listener.status();
  (*listener)->Start([](int fd) { close(fd); });
  const int port = (*listener)->port();
  (*listener)->Stop();
  EXPECT_EQ(Connect(port), -1);
}

}  // namespace
}  // namespace keyline
