#include "launch/input_text.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace keyline {

absl::StatusOr<std::string> ReadTextFile(const std::string& path) {
  constexpr size_t kMaxBytes = size_t{64} << 20;
  std::unique_ptr<FILE, int (*)(FILE*)> opened(nullptr, std::fclose);
  FILE* file = stdin;
  if (path != "-") {
    opened.reset(std::fopen(path.c_str(), "rb"));
    if (opened == nullptr) {
      return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
    }
    file = opened.get();
  }
  std::string text;
  char block[1 << 16];
  while (const size_t n = std::fread(block, 1, sizeof(block), file)) {
    text.append(block, n);
    if (text.size() > kMaxBytes) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": more than ", kMaxBytes, " bytes"));
    }
  }
  if (std::ferror(file) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  return text;
}

}  // namespace keyline
