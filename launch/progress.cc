#include "launch/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace keyline {

Progress::Progress(std::string what, size_t total_bytes, bool visible)
    : what_(std::move(what)),
      total_(std::max<size_t>(total_bytes, 1)),
      visible_(visible),
      terminal_(isatty(STDERR_FILENO) != 0) {}

Progress::~Progress() {
  if (visible_ && terminal_ && shown_percent_ >= 0) std::fputs("\r\033[K", stderr);
}

void Progress::Add(size_t bytes) {
  std::lock_guard lock(mutex_);
  done_ = std::min(total_, done_ + bytes);
  if (visible_) Draw();
}

void Progress::Draw() {
  const int percent = static_cast<int>(done_ * 100 / total_);
  if (terminal_) {
    if (percent == shown_percent_) return;
    constexpr int kWidth = 40;
    const int filled = percent * kWidth / 100;
    std::fprintf(stderr, "\r%s [%.*s%*s] %3d %%", what_.c_str(), filled,
                 "########################################", kWidth - filled, "", percent);
    std::fflush(stderr);
  } else if (percent == 100 && shown_percent_ < 100) {
    std::fprintf(stderr, "%s: done, %zu MiB\n", what_.c_str(), total_ >> 20);
  }
  shown_percent_ = percent;
}

}  // namespace keyline
