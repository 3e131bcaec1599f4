// The input is a header; it stands before 64 bytes of data.
#include <glog/logging.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/files/safetensors/safetensors_header.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint64_t kDataBytes = 64;
  const auto entries = keyline::ParseSafetensorsHeader({reinterpret_cast<const char*>(data), size},
                                                       kDataBytes, "fuzz");
  if (!entries.ok()) return 0;
  uint64_t done = 0;
  for (const keyline::SafetensorsEntry& entry : *entries) {
    CHECK_EQ(entry.begin, done);
    CHECK_GE(entry.end, entry.begin);
    done = entry.end;
  }
  CHECK_EQ(done, kDataBytes);
  return 0;
}
