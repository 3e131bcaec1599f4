// Ranks as threads of one process: a mailbox for each ordered pair of ranks and each plane.
#include <glog/logging.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "kernels/device/status_macros.h"
#include "runtime/transport/host_communicator.h"
#include "runtime/transport/patient_wait.h"

namespace keyline {
namespace {

using Clock = std::chrono::steady_clock;

// What one rank has sent to another in one plane.
class Mailbox {
 public:
  void Put(Bytes message) {
    {
      std::lock_guard lock(mutex_);
      messages_.push_back(std::move(message));
      something_.store(true, std::memory_order_release);
    }
    arrived_.notify_one();
  }

  // The sender has ended.
  void Close() {
    {
      std::lock_guard lock(mutex_);
      closed_ = true;
      something_.store(true, std::memory_order_release);
    }
    arrived_.notify_one();
  }

  // The next message; nothing when the deadline has passed or the box is empty and closed.
  std::optional<Bytes> Take(Clock::time_point deadline) {
    Spin(deadline);
    std::unique_lock lock(mutex_);
    arrived_.wait_until(lock, deadline, [this] { return closed_ || !messages_.empty(); });
    if (messages_.empty()) return std::nullopt;
    Bytes message = std::move(messages_.front());
    messages_.pop_front();
    something_.store(closed_ || !messages_.empty(), std::memory_order_release);
    return message;
  }

  // A message, or the news that none will come.
  bool HasSomething() const { return something_.load(std::memory_order_acquire); }

  bool closed() {
    std::lock_guard lock(mutex_);
    return closed_;
  }

 private:
  // A message that is about to come is cheaper to spin for than to sleep and be woken for.
  void Spin(Clock::time_point deadline) const {
    const Clock::time_point end = std::min(deadline, Clock::now() + std::chrono::microseconds(30));
    while (!HasSomething() && Clock::now() < end) std::this_thread::yield();
  }

  std::mutex mutex_;
  std::condition_variable arrived_;
  std::deque<Bytes> messages_;
  bool closed_ = false;
  std::atomic<bool> something_ = false;  // closed_ || !messages_.empty()
};

struct PostOffice {
  explicit PostOffice(int size) : size(size), bytes(size * size), tensors(size * size) {}
  // Index of the box from one rank to another.
  size_t Box(int from, int to) const {
    CHECK(from >= 0 && from < size && to >= 0 && to < size)
        << "from rank " << from << " to rank " << to << " of " << size;
    return static_cast<size_t>(from) * size + to;
  }

  const int size;
  std::vector<Mailbox> bytes;
  std::vector<Mailbox> tensors;
};

class LocalCommunicator : public HostCommunicator {
 public:
  LocalCommunicator(int rank, std::shared_ptr<PostOffice> office)
      : HostCommunicator(std::make_shared<RankState>(rank)),
        rank_(rank),
        office_(std::move(office)) {}
  ~LocalCommunicator() override {
    for (int peer = 0; peer < office_->size; ++peer) {
      office_->bytes[office_->Box(rank_, peer)].Close();
      office_->tensors[office_->Box(rank_, peer)].Close();
    }
  }

  int rank() const override { return rank_; }
  int size() const override { return office_->size; }

  void SendBytes(int peer, std::span<const std::byte> message) override {
    CHECK_LE(message.size(), kMaxMessageBytes);
    office_->bytes[office_->Box(rank_, peer)].Put(Bytes(message.begin(), message.end()));
  }

  absl::StatusOr<Bytes> RecvBytes(int peer, absl::Duration timeout,
                                  std::string_view awaited) override {
    return Take(office_->bytes[office_->Box(peer, rank_)], peer, timeout, awaited);
  }

  bool HasBytes(int peer) override {
    return office_->bytes[office_->Box(peer, rank_)].HasSomething();
  }

 protected:
  void SendTensorBytes(int peer, Bytes message) override {
    CHECK_LE(message.size(), kMaxMessageBytes);
    office_->tensors[office_->Box(rank_, peer)].Put(std::move(message));
  }

  absl::Status RecvTensorBytes(int peer, std::span<std::byte> into, absl::Duration timeout,
                               std::string_view awaited) override {
    ASSIGN_OR_RETURN(const Bytes message,
                     Take(office_->tensors[office_->Box(peer, rank_)], peer, timeout, awaited));
    if (message.size() != into.size()) {
      return WrongSize(peer, awaited, message.size(), into.size());
    }
    std::memcpy(into.data(), message.data(), message.size());
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<Bytes> Take(Mailbox& box, int peer, absl::Duration timeout,
                             std::string_view awaited) {
    std::optional<Bytes> message = box.Take(DeadlineAfter(timeout));
    if (message) return *std::move(message);
    return box.closed() ? PeerEnded(peer, awaited) : NothingCame(peer, awaited, timeout);
  }

  const int rank_;
  const std::shared_ptr<PostOffice> office_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeLocalCommunicators(int size) {
  CHECK_GE(size, 1);
  auto office = std::make_shared<PostOffice>(size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  ranks.reserve(size);
  for (int r = 0; r < size; ++r) ranks.push_back(std::make_unique<LocalCommunicator>(r, office));
  return ranks;
}

}  // namespace keyline
