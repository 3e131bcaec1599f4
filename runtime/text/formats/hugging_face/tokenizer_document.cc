#include "runtime/text/formats/hugging_face/tokenizer_document.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/input_file.h"
#include "runtime/files/json_file.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

using nlohmann::json;

constexpr int kRootDepth = 1, kModelDepth = 2;

// Takes model.vocab and model.merges out of the stream of events.
class Scanner : public JsonBuilder {
 public:
  Scanner() : JsonBuilder(kTokenizerJson) {}

  bool key(string_t& name) override {
    if (list_ == List::kVocab) {
      Keep(name);
      return true;
    }
    if (depth() == kRootDepth) in_model_ = name == "model";
    announced_ = List::kNone;
    if (in_model_ && depth() == kModelDepth) {
      if (name == "vocab") announced_ = List::kVocab;
      if (name == "merges") announced_ = List::kMerges;
    }
    return JsonBuilder::key(name);
  }

  bool start_object(std::size_t elements) override {
    if (list_ != List::kNone) return Wrong("an object");
    if (std::exchange(announced_, List::kNone) == List::kVocab) list_ = List::kVocab;
    return JsonBuilder::start_object(elements);  // in the document it stays empty
  }
  bool end_object() override {
    list_ = List::kNone;
    return JsonBuilder::end_object();
  }

  bool start_array(std::size_t elements) override {
    if (list_ == List::kMerges && !in_pair_) {
      in_pair_ = true;
      parts_ = 0;
      return CountValue();
    }
    if (list_ != List::kNone) return Wrong("a list");
    if (std::exchange(announced_, List::kNone) == List::kMerges) list_ = List::kMerges;
    return JsonBuilder::start_array(elements);
  }
  bool end_array() override {
    if (list_ == List::kMerges && in_pair_) {
      in_pair_ = false;
      return parts_ == 2 || Wrong("a list of other than two texts");
    }
    list_ = List::kNone;
    return JsonBuilder::end_array();
  }

  bool string(string_t& value) override {
    if (list_ == List::kNone) return JsonBuilder::string(value);
    if (list_ == List::kVocab) return Wrong("a text");
    if (!CountValue()) return false;
    if (in_pair_) {
      if (parts_ == 2) return Wrong("a list of more than two texts");
      ++parts_;
      Keep(value);
      return true;
    }
    const size_t space = value.find(' ');
    if (space == value.npos || value.find(' ', space + 1) != value.npos) {
      return Wrong(absl::StrCat(Quoted(value), ", which is no pair of texts"));
    }
    Keep(std::string_view(value).substr(0, space));
    Keep(std::string_view(value).substr(space + 1));
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (list_ == List::kNone) return JsonBuilder::number_unsigned(value);
    if (list_ != List::kVocab) return Wrong("a number");
    if (value > static_cast<number_unsigned_t>(std::numeric_limits<int32_t>::max())) {
      return Wrong(absl::StrCat(value, ", which is no token id"));
    }
    ids_.push_back(static_cast<int32_t>(value));
    return CountValue();
  }
  bool number_integer(number_integer_t value) override {
    return list_ == List::kNone ? JsonBuilder::number_integer(value) : Wrong("a negative number");
  }
  bool number_float(number_float_t value, const string_t& text) override {
    return list_ == List::kNone ? JsonBuilder::number_float(value, text) : Wrong("a fraction");
  }
  bool boolean(bool value) override {
    return list_ == List::kNone ? JsonBuilder::boolean(value) : Wrong("a truth value");
  }
  bool null() override { return list_ == List::kNone ? JsonBuilder::null() : Wrong("null"); }

  TokenizerDocument TakeDocument() {
    TokenizerDocument document;
    document.rest = Take();
    document.texts = std::make_unique<const std::string>(std::move(texts_));
    const auto view = [&](const Span& span) {
      return std::string_view(*document.texts).substr(span.begin, span.size);
    };
    for (size_t i = 0; i < ids_.size(); ++i) document.vocab.push_back({view(vocab_[i]), ids_[i]});
    for (size_t i = 0; i + 1 < merges_.size(); i += 2) {
      document.merges.push_back({view(merges_[i]), view(merges_[i + 1])});
    }
    return document;
  }

 private:
  enum class List { kNone, kVocab, kMerges };
  struct Span {
    size_t begin, size;
  };

  void Keep(std::string_view text) {
    (list_ == List::kVocab ? vocab_ : merges_).push_back({texts_.size(), text.size()});
    texts_ += text;
  }
  bool Wrong(const std::string& what) {
    if (list_ == List::kMerges) {
      const size_t before = merges_.size() - (in_pair_ ? parts_ : 0);
      return Fail(absl::StrCat("model.merges[", before / 2, "] is ", what,
                               "; it must be \"a b\" or [\"a\", \"b\"]"));
    }
    const Span& key = vocab_.back();
    return Fail(absl::StrCat("model.vocab[",
                             Quoted(std::string_view(texts_).substr(key.begin, key.size)), "] is ",
                             what, "; it must be a token id"));
  }

  bool in_model_ = false;
  List announced_ = List::kNone;  // what the last key names
  List list_ = List::kNone;       // the one being read
  bool in_pair_ = false;          // within a pair of merges
  int parts_ = 0;                 // of that pair
  std::string texts_;
  std::vector<Span> vocab_, merges_;
  std::vector<int32_t> ids_;
};

}  // namespace

absl::StatusOr<TokenizerDocument> ReadTokenizerDocument(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kTokenizerJson.max_bytes));
  Scanner scanner;
  if (!json::sax_parse(text.begin(), text.end(), &scanner)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", scanner.error()));
  }
  return scanner.TakeDocument();
}

}  // namespace keyline
