#include "runtime/transport/watchdog.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace keyline {
namespace {

constexpr std::chrono::milliseconds kLook(50);

sigset_t SetOf(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  return set;
}

}  // namespace

void Watchdog::BlockSigterm() {
  const sigset_t set = SetOf(SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Watchdog::Watchdog(std::vector<std::shared_ptr<RankState>> states, bool takes_sigterm)
    : states_(std::move(states)), takes_sigterm_(takes_sigterm), thread_([this] { Watch(); }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    over_ = true;
  }
  ended_.notify_one();
  if (takes_sigterm_) pthread_kill(thread_.native_handle(), SIGTERM);  // wakes it
  thread_.join();
}

bool Watchdog::Wait() {
  if (!takes_sigterm_) {
    std::unique_lock lock(mutex_);
    return !ended_.wait_for(lock, kLook, [this] { return over_; });
  }
  const sigset_t sigterm = SetOf(SIGTERM);
  const timespec look{.tv_sec = 0, .tv_nsec = std::chrono::nanoseconds(kLook).count()};
  const bool came = sigtimedwait(&sigterm, nullptr, &look) == SIGTERM;
  std::lock_guard lock(mutex_);
  if (over_ || !came) return !over_;
  std::string text;
  for (const auto& state : states_) {
    absl::StrAppend(&text, "keyline: ", state->text(), ": ended by SIGTERM\n");
  }
  for (const std::string& line : RankState::GoneRanks(RankState::JobDirectory())) {
    absl::StrAppend(&text, "keyline: gone: ", line, "\n");
  }
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
  _exit(128 + SIGTERM);
}

void Watchdog::Watch() {
  while (Wait()) {
    for (const auto& state : states_) {
      absl::Duration limit;
      if (!state->overdue(&limit)) continue;
      EndLostRank(*state, absl::StrCat("not done within ", absl::FormatDuration(limit)));
    }
  }
}

}  // namespace keyline
