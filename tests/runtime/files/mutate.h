// Random damage to a file, the same for the same seed.
#pragma once

#include <random>
#include <string>

namespace keyline {

inline std::string Mutate(std::string bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&random](size_t n) { return n == 0 ? 0 : random() % n; };
  for (size_t changes = 1 + below(4); changes > 0 && !bytes.empty(); --changes) {
    const size_t at = below(bytes.size());
    const size_t length = 1 + below(8);
    switch (below(6)) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
        bytes.erase(at, length);
        break;
      case 3:
        bytes.insert(at, bytes.substr(below(bytes.size()), length));
        break;
      case 4:
        bytes.replace(at, length, std::string(length, random() % 2 == 0 ? '\0' : '\xff'));
        break;
      case 5:
        bytes.resize(at);
        break;
    }
  }
  return bytes;
}

}  // namespace keyline
