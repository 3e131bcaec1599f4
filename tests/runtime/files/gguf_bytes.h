// GGUF files made by hand, sound or not.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "runtime/files/gguf/gguf_header.h"

namespace keyline {

template <class T>
std::string Le(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

inline std::string GgufString(const std::string& text) { return Le<uint64_t>(text.size()) + text; }

// Metadata: `payload` is what follows the type.
inline std::string GgufPair(const std::string& key, GgufType type, const std::string& payload) {
  return GgufString(key) + Le(static_cast<uint32_t>(type)) + payload;
}
inline std::string Pair(const std::string& key, uint32_t n) {
  return GgufPair(key, GgufType::kUint32, Le(n));
}
inline std::string Pair(const std::string& key, float x) {
  return GgufPair(key, GgufType::kFloat32, Le(x));
}
inline std::string Pair(const std::string& key, const std::string& text) {
  return GgufPair(key, GgufType::kString, GgufString(text));
}
// `elements`: each as it lies in the file.
inline std::string Pair(const std::string& key, GgufType element,
                        const std::vector<std::string>& elements) {
  std::string payload = Le(static_cast<uint32_t>(element)) + Le<uint64_t>(elements.size());
  for (const std::string& e : elements) payload += e;
  return GgufPair(key, GgufType::kArray, payload);
}

// An entry of the list of tensors; `dims` innermost first, as the file has them.
inline std::string GgufTensorEntry(const std::string& name, const std::vector<uint64_t>& dims,
                                   uint32_t type, uint64_t offset) {
  std::string bytes = GgufString(name) + Le(static_cast<uint32_t>(dims.size()));
  for (const uint64_t n : dims) bytes += Le(n);
  return bytes + Le(type) + Le(offset);
}

inline std::string GgufBytes(const std::vector<std::string>& pairs,
                             const std::vector<std::string>& tensors, const std::string& data) {
  std::string bytes =
      "GGUF" + Le<uint32_t>(3) + Le<uint64_t>(tensors.size()) + Le<uint64_t>(pairs.size());
  for (const std::string& pair : pairs) bytes += pair;
  for (const std::string& tensor : tensors) bytes += tensor;
  bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
  return bytes + data;
}

// Puts float32 tensors one after the other, each padded to 32 bytes.
class GgufFloats {
 public:
  void Add(const std::string& name, const std::vector<uint64_t>& dims,
           const std::vector<float>& values) {
    entries.push_back(GgufTensorEntry(name, dims, 0, data.size()));
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    data.resize((data.size() + 31) / 32 * 32, '\0');
  }
  std::vector<std::string> entries;
  std::string data;
};

}  // namespace keyline
