#include "runtime/text/prepare/normalizer.h"

#include "runtime/text/prepare/nfc.h"

namespace keyline {
namespace {

class Prepend : public NormalizerStep {
 public:
  Prepend(std::string prefix, PrependWhen when) : prefix_(std::move(prefix)), when_(when) {}
  void Apply(std::string& text, bool at_start) const override {
    if (when_ == PrependWhen::kAtStartUnlessPresent && !at_start) return;
    if (when_ != PrependWhen::kAlways && text.compare(0, prefix_.size(), prefix_) == 0) return;
    text.insert(0, prefix_);
  }

 private:
  const std::string prefix_;
  const PrependWhen when_;
};

class Replace : public NormalizerStep {
 public:
  Replace(std::string from, std::string to) : from_(std::move(from)), to_(std::move(to)) {}
  void Apply(std::string& text, bool /*at_start*/) const override {
    size_t at = text.find(from_);
    if (at == std::string::npos) return;
    std::string out;
    out.reserve(text.size() + text.size() / 2);
    size_t done = 0;
    for (; at != std::string::npos; at = text.find(from_, done)) {
      out.append(text, done, at - done).append(to_);
      done = at + from_.size();
    }
    text = std::move(out.append(text, done));
  }

 private:
  const std::string from_, to_;
};

class Nfc : public NormalizerStep {
 public:
  void Apply(std::string& text, bool /*at_start*/) const override { ComposeNfc(text); }
};

}  // namespace

std::string Normalizer::Apply(std::string_view text, bool at_start) const {
  std::string out(text);
  for (const auto& step : steps_) {
    if (out.empty()) break;
    step->Apply(out, at_start);
  }
  return out;
}

std::unique_ptr<NormalizerStep> MakePrepend(std::string prefix, PrependWhen when) {
  return std::make_unique<Prepend>(std::move(prefix), when);
}

std::unique_ptr<NormalizerStep> MakeReplace(std::string from, std::string to) {
  return std::make_unique<Replace>(std::move(from), std::move(to));
}

std::unique_ptr<NormalizerStep> MakeNfc() { return std::make_unique<Nfc>(); }

}  // namespace keyline
