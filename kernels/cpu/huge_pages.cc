#include "kernels/cpu/huge_pages.h"

#include <glog/logging.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>

namespace keyline {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = 2 * kHugePage;           // from here on blocks are mappings of their own
constexpr size_t kRegionBytes = size_t{64} << 20;  // of addresses; memory comes as it is touched

size_t RoundUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Zeroed memory of the operating system, aligned to a huge page; null if there is none.
std::byte* Map(size_t bytes) {
  // Map a huge page more than needed, give back what lies before and behind the aligned range.
  const size_t mapped = bytes + kHugePage;
  void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(raw);
  const size_t before =
      RoundUp(reinterpret_cast<uintptr_t>(raw), kHugePage) - reinterpret_cast<uintptr_t>(raw);
  if (before > 0) munmap(begin, before);
  munmap(begin + before + bytes, mapped - before - bytes);
  madvise(begin + before, bytes, MADV_HUGEPAGE);  // a wish
  return begin + before;
}

}  // namespace

HugePages::~HugePages() {
  for (const Region& region : regions_) munmap(region.begin, kRegionBytes);
}

void* HugePages::Allocate(size_t bytes) {
  if (bytes >= kLarge) return Map(RoundUp(bytes, kHugePage));
  const size_t size = RoundUp(bytes, kPage);
  std::lock_guard lock(mutex_);
  if (regions_.empty() || regions_.back().used + size > kRegionBytes) {
    std::byte* const begin = Map(kRegionBytes);
    if (begin == nullptr) return nullptr;
    regions_.push_back({.begin = begin});
  }
  Region& region = regions_.back();
  void* const memory = region.begin + region.used;
  region.used += size;
  ++region.blocks;
  return memory;
}

void HugePages::Free(void* memory, size_t bytes) {
  if (bytes >= kLarge) {
    munmap(memory, RoundUp(bytes, kHugePage));
    return;
  }
  auto* const begin = static_cast<std::byte*>(memory);
  std::lock_guard lock(mutex_);
  const auto region = std::find_if(regions_.begin(), regions_.end(), [begin](const Region& r) {
    return begin >= r.begin && begin < r.begin + kRegionBytes;
  });
  CHECK(region != regions_.end()) << memory << " lies in no region";
  if (--region->blocks == 0) {
    munmap(region->begin, kRegionBytes);
    regions_.erase(region);
  } else {
    // The addresses are not given out again, the memory is.
    madvise(begin, RoundUp(bytes, kPage), MADV_DONTNEED);
  }
}

}  // namespace keyline
