// What stands before the weights in a GGUF file: metadata and the list of tensors, parsed and
// checked against the size of the file. Pure: bytes in, offsets out. For gguf.h and the fuzzer.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"

namespace keyline {

enum class GgufType : uint32_t {  // numbers of the format
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};
std::string_view Name(GgufType type);
// 0 for strings and arrays.
uint64_t BytesOf(GgufType type);

// Where a value lies; all its bytes are known to be within the header.
struct GgufValue {
  GgufType type = GgufType::kUint8;
  GgufType element = GgufType::kUint8;  // of an array
  uint64_t count = 0;                   // elements of an array, bytes of a string
  uint64_t offset = 0;                  // first element, first character, or the number
};

struct GgufTensor {
  std::string name;  // as the file spells it
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;  // outermost first: the file's order reversed
  uint64_t offset = 0;         // in the file
  uint64_t bytes = 0;
};

struct GgufHeader {
  std::map<std::string, GgufValue, std::less<>> values;
  std::vector<GgufTensor> tensors;
  uint64_t bytes = 0;  // up to the end of the tensor list
};

// `prefix`: the first bytes of a file of `file_bytes`; `path` is for messages. OUT_OF_RANGE where
// the header goes on beyond `prefix` as far as can be told: read more and call again. Other errors:
// gguf.h.
absl::StatusOr<GgufHeader> ParseGgufHeader(std::string_view prefix, uint64_t file_bytes,
                                           const std::string& path);

}  // namespace keyline
