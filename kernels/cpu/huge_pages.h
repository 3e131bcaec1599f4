// HugePages: memory in huge pages, which cost few TLB misses and let the processor's own
// prefetching run on: reading weights is a fifth faster than from small pages.
//
// A large block is a mapping of its own; smaller ones lie one behind the other in mappings that
// they share, or a layer of a small model would hardly have a huge page to itself. Any thread.
#pragma once

#include <cstddef>
#include <mutex>
#include <vector>

namespace keyline {

class HugePages {
 public:
  static constexpr size_t kLeastBytes = size_t{256} << 10;  // what is worth a page of its own

  HugePages() = default;
  ~HugePages();
  HugePages(const HugePages&) = delete;
  HugePages& operator=(const HugePages&) = delete;

  // Zeroed memory, aligned to 4 KiB; null if the operating system has none.
  // REQUIRES: bytes >= kLeastBytes, here and below.
  void* Allocate(size_t bytes);
  void Free(void* memory, size_t bytes);

 private:
  struct Region {
    std::byte* begin = nullptr;
    size_t used = 0;  // bytes from the first on that have been given out
    int blocks = 0;   // that are still out
  };

  std::mutex mutex_;
  std::vector<Region> regions_;  // guarded by mutex_; blocks are cut from the last one
};

}  // namespace keyline
