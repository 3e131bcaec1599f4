// Element types of tensors and of tensors in checkpoint files.
//
// A block type (kQ8_0 and below) packs kBlock elements with their scales as GGUF files do; see
// runtime/files/gguf/gguf_blocks.h for the layouts. Only checkpoint tensors and weights have one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace keyline {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI32,
  kI8,
  kU8,
  kI64,
  kI4,  // two unsigned elements a byte, the first half of a block in the high nibbles
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

struct DTypeTraits {
  std::string_view name;
  int block_elements;  // elements that share one block; 1 for plain types
  int block_bytes;
};

constexpr DTypeTraits TraitsOf(DType t) {
  switch (t) {
    case DType::kF32:
      return {"f32", 1, 4};
    case DType::kF16:
      return {"f16", 1, 2};
    case DType::kBF16:
      return {"bf16", 1, 2};
    case DType::kI32:
      return {"i32", 1, 4};
    case DType::kI8:
      return {"i8", 1, 1};
    case DType::kU8:
      return {"u8", 1, 1};
    case DType::kI64:
      return {"i64", 1, 8};
    case DType::kI4:
      return {"i4", 2, 1};
    case DType::kQ8_0:
      return {"q8_0", 32, 34};
    case DType::kQ4_0:
      return {"q4_0", 32, 18};
    case DType::kQ4_1:
      return {"q4_1", 32, 20};
    case DType::kQ5_0:
      return {"q5_0", 32, 22};
    case DType::kQ5_1:
      return {"q5_1", 32, 24};
    case DType::kQ4_K:
      return {"q4_k", 256, 144};
    case DType::kQ5_K:
      return {"q5_k", 256, 176};
    case DType::kQ6_K:
      return {"q6_k", 256, 210};
  }
  return {"?", 1, 1};
}

constexpr std::string_view Name(DType t) { return TraitsOf(t).name; }

// Bytes of `elements` elements. REQUIRES: a multiple of the type's block.
constexpr size_t BytesOf(DType t, int64_t elements) {
  const DTypeTraits traits = TraitsOf(t);
  return static_cast<size_t>(elements / traits.block_elements) * traits.block_bytes;
}

constexpr bool IsFloat(DType t) {
  return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16;
}

}  // namespace keyline
