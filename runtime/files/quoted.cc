#include "runtime/files/quoted.h"

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace keyline {

std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 80;
  const bool cut = text.size() > kShown;
  const size_t shown = cut ? kShown : text.size();
  return absl::StrCat("'", absl::CHexEscape(absl::string_view(text.data(), shown)),
                      cut ? "...'" : "'");
}

}  // namespace keyline
