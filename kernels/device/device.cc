#include "kernels/device/device.h"

#include <glog/logging.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"

namespace keyline {

void Stream::WaitFor(Event& mark) {
  if (!while_waiting_) return mark.Synchronize();  // other work is under way: it may sleep
  PollUntil([&mark] { return mark.Reached(); });
}

void Stream::PollUntil(const std::function<bool()>& done) {
  constexpr int kSpins = 64;
  for (int polls = 0; !done();) {
    if (while_waiting_) while_waiting_();
    if (polls < kSpins) {
      ++polls;
    } else {
      std::this_thread::yield();
    }
  }
}

Device::~Device() {
  if (!blocks_.empty()) LOG(ERROR) << blocks_.size() << " blocks of memory outlive " << name_;
}

absl::StatusOr<void*> Device::Allocate(size_t bytes) {
  // Counted before it is there, so that threads together keep to the limit, too.
  {
    std::lock_guard lock(mutex_);
    const size_t left = limit_ - std::min(limit_, used_);
    if (bytes > left) {
      return absl::ResourceExhaustedError(
          absl::StrCat(name_, ": no room for ", bytes, " bytes: ", left, " of the ", limit_,
                       " bytes that --device-memory allows are left"));
    }
    used_ += bytes;
  }
  absl::StatusOr<void*> memory = AllocateMemory(bytes);
  std::lock_guard lock(mutex_);
  if (!memory.ok()) {
    used_ -= bytes;
    return memory;
  }
  peak_ = std::max(peak_, used_);
  blocks_[*memory] = bytes;
  return memory;
}

void Device::Free(void* memory) {
  if (memory == nullptr) return;
  size_t bytes = 0;
  {
    std::lock_guard lock(mutex_);
    const auto block = blocks_.find(memory);
    CHECK(block != blocks_.end()) << memory << " is not memory of " << name_;
    bytes = block->second;
    blocks_.erase(block);
  }
  FreeMemory(memory, bytes);
  std::lock_guard lock(mutex_);
  used_ -= bytes;
}

void Device::LimitMemory(size_t bytes) {
  std::lock_guard lock(mutex_);
  limit_ = bytes;
}

size_t Device::used_bytes() const {
  std::lock_guard lock(mutex_);
  return used_;
}

size_t Device::peak_bytes() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

}  // namespace keyline
