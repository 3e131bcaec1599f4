// Progress: how far a model has been loaded: a bar on a terminal, a few log lines elsewhere.
// Thread: any.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>

namespace keyline {

class Progress {
 public:
  // `total_bytes` of work named `what`; shown on standard error if `visible`.
  Progress(std::string what, size_t total_bytes, bool visible);
  ~Progress();
  void Add(size_t bytes);

 private:
  void Draw();

  const std::string what_;
  const size_t total_;
  const bool visible_;
  const bool terminal_;
  std::mutex mutex_;
  size_t done_ = 0;
  int shown_percent_ = -1;
};

}  // namespace keyline
