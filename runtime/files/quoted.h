// Text from a file, fit for an error message.
#pragma once

#include <string>
#include <string_view>

namespace keyline {

// In single quotes, printable ASCII, cut after 80 bytes: a hostile name must not flood a log or a
// terminal.
std::string Quoted(std::string_view text);

}  // namespace keyline
