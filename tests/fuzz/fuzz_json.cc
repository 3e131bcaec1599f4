// The input is a JSON text.
#include <glog/logging.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/files/json_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = keyline::ParseJson(text, "fuzz", keyline::kTokenizerJson);
  // What is sound can be written, and reads back the same.
  if (json.ok()) {
    const std::string written = json->dump();
    const auto again = keyline::ParseJson(written, "fuzz", keyline::kTokenizerJson);
    CHECK(again.ok()) << again.status();
    CHECK(*again == *json) << written;
  }
  return 0;
}
