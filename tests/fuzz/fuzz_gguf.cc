// The input is a whole file.
#include <glog/logging.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/files/gguf/gguf_header.h"
#include "runtime/files/gguf/gguf_names.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const auto header = keyline::ParseGgufHeader(bytes, size, "fuzz");
  CHECK(!absl::IsOutOfRange(header.status()));
  // A file of which only a part has been read yet.
  (void)keyline::ParseGgufHeader(bytes.substr(0, size / 2), size, "fuzz");
  if (!header.ok()) return 0;
  CHECK_LE(header->bytes, size);
  for (const auto& [key, value] : header->values) CHECK_LE(value.offset, header->bytes);
  for (const keyline::GgufTensor& tensor : header->tensors) {
    CHECK_LE(tensor.offset, size);
    CHECK_LE(tensor.bytes, size - tensor.offset);
    (void)keyline::HuggingFaceName(tensor.name);
  }
  return 0;
}
