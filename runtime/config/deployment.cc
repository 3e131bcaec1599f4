#include "runtime/config/deployment.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"

namespace keyline {
namespace {

constexpr uint64_t kMaxBytes = 1 << 20;

// Keeps the first error; the rest usually follows from it.
class FirstError : public google::protobuf::io::ErrorCollector {
 public:
  explicit FirstError(const std::string& path) : path_(path) {}
  void AddError(int line, int column, const std::string& message) override {
    if (!text_.empty()) return;
    // Lines and columns count from 0 here, from 1 for people; -1 where the whole file is meant.
    text_ = line < 0 ? absl::StrCat(path_, ": ", message)
                     : absl::StrCat(path_, ":", line + 1, ":", column + 1, ": ", message);
  }
  const std::string& text() const { return text_; }

 private:
  const std::string& path_;
  std::string text_;
};

}  // namespace

absl::StatusOr<config::Deployment> ParseDeployment(std::string_view text, const std::string& path) {
  FirstError error(path);
  google::protobuf::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  config::Deployment deployment;
  if (!parser.ParseFromString(std::string(text), &deployment)) {
    return absl::InvalidArgumentError(error.text());
  }
  return deployment;
}

absl::StatusOr<config::Deployment> LoadDeployment(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxBytes));
  return ParseDeployment(text, path);
}

}  // namespace keyline
