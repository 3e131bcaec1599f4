#include "runtime/files/gguf/gguf_header.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/device/status_macros.h"
#include "runtime/files/quoted.h"

namespace keyline {
namespace {

static_assert(std::endian::native == std::endian::little, "files are read in place");

constexpr uint64_t kMaxTensors = 100'000;
constexpr uint64_t kMaxValues = 65'536;
constexpr uint64_t kMaxNameBytes = 512;  // of a tensor or a key; the format's own limit is lower
constexpr uint32_t kMaxRank = 4;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kDefaultAlignment = 32;
constexpr std::string_view kAlignmentKey = "general.alignment";
// The least that one entry takes: counts are checked against the file before anything is read.
constexpr uint64_t kLeastValueBytes = 8 + 4 + 1;
constexpr uint64_t kLeastTensorBytes = 8 + 4 + 4 + 8;

struct ElementType {
  uint32_t number;  // ggml_type
  DType dtype;
};
constexpr ElementType kElementTypes[] = {
    {0, DType::kF32},   {1, DType::kF16},   {2, DType::kQ4_0}, {3, DType::kQ4_1},
    {6, DType::kQ5_0},  {7, DType::kQ5_1},  {8, DType::kQ8_0}, {12, DType::kQ4_K},
    {13, DType::kQ5_K}, {14, DType::kQ6_K}, {24, DType::kI8},  {26, DType::kI32},
    {27, DType::kI64},  {30, DType::kBF16},
};

// Walks through the header. Each Read checks that the bytes are there before it looks at them.
class HeaderReader {
 public:
  HeaderReader(std::string_view prefix, uint64_t file_bytes, const std::string& path)
      : prefix_(prefix), file_bytes_(file_bytes), path_(path) {}

  absl::StatusOr<GgufHeader> Read() {
    ASSIGN_OR_RETURN(const uint32_t magic, Number<uint32_t>("magic"));
    constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
    if (magic != kMagic) return Malformed(0, "is not a GGUF file: it does not begin with 'GGUF'");
    ASSIGN_OR_RETURN(const uint32_t version, Number<uint32_t>("version"));
    if (version != 2 && version != 3) {
      return Malformed(4, absl::StrCat("GGUF version ", version, "; 2 and 3 are read",
                                       (version & 0xffff) == 0 ? " (a big-endian file?)" : ""));
    }
    ASSIGN_OR_RETURN(const uint64_t tensors, Number<uint64_t>("tensor count"));
    ASSIGN_OR_RETURN(const uint64_t values, Number<uint64_t>("metadata count"));
    RETURN_IF_ERROR(CheckCount(8, "tensors", tensors, kMaxTensors, kLeastTensorBytes));
    RETURN_IF_ERROR(CheckCount(16, "metadata values", values, kMaxValues, kLeastValueBytes));
    for (uint64_t i = 0; i < values; ++i) RETURN_IF_ERROR(ReadValue());
    ASSIGN_OR_RETURN(const uint64_t alignment, Alignment());
    for (uint64_t i = 0; i < tensors; ++i) RETURN_IF_ERROR(ReadTensor(alignment));
    header_.bytes = at_;
    RETURN_IF_ERROR(PlaceTensors(alignment));
    return std::move(header_);
  }

 private:
  absl::Status Malformed(uint64_t at, const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": byte ", at, ": ", what));
  }

  // The next `bytes` are in the prefix.
  absl::Status Need(uint64_t bytes, const std::string& what) const {
    if (bytes > file_bytes_ - at_) {
      return absl::DataLossError(absl::StrCat(path_, ": byte ", at_, ": ", what, " takes ", bytes,
                                              " bytes, the file ends at ", file_bytes_));
    }
    if (bytes > prefix_.size() - at_) return absl::OutOfRangeError("header goes on");
    return absl::OkStatus();
  }

  template <class T>
  absl::StatusOr<T> Number(const std::string& what) {
    RETURN_IF_ERROR(Need(sizeof(T), what));
    T value;
    std::memcpy(&value, prefix_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  // A name: short, not empty, no NUL.
  absl::StatusOr<std::string> NameString(const std::string& what) {
    const uint64_t begin = at_;
    ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>("length of " + what));
    if (length == 0 || length > kMaxNameBytes) {
      return Malformed(begin, absl::StrCat(what, " of ", length, " bytes; 1 to ", kMaxNameBytes,
                                           " are allowed"));
    }
    RETURN_IF_ERROR(Need(length, what));
    std::string name(prefix_.substr(at_, length));
    at_ += length;
    if (name.find('\0') != std::string::npos) {
      return Malformed(begin, absl::StrCat(what, " ", Quoted(name), " contains NUL"));
    }
    return name;
  }

  absl::Status CheckCount(uint64_t at, const std::string& what, uint64_t count, uint64_t limit,
                          uint64_t least_bytes) const {
    if (count <= limit && count <= file_bytes_ / least_bytes) return absl::OkStatus();
    return Malformed(
        at, absl::StrCat(count, " ", what, "; a file of ", file_bytes_, " bytes has at most ",
                         std::min(limit, file_bytes_ / least_bytes)));
  }

  absl::StatusOr<GgufType> Type(const std::string& of) {
    const uint64_t begin = at_;
    ASSIGN_OR_RETURN(const uint32_t number, Number<uint32_t>("type of " + of));
    if (number > static_cast<uint32_t>(GgufType::kFloat64)) {
      return Malformed(begin, absl::StrCat(of, ": type ", number, " is unknown"));
    }
    return static_cast<GgufType>(number);
  }

  absl::Status ReadValue() {
    const uint64_t begin = at_;
    ASSIGN_OR_RETURN(std::string key, NameString("metadata key"));
    const std::string what = absl::StrCat("key ", Quoted(key));
    GgufValue value;
    ASSIGN_OR_RETURN(value.type, Type(what));
    if (value.type == GgufType::kString) {
      ASSIGN_OR_RETURN(value.count, Number<uint64_t>(what));
      value.offset = at_;
      RETURN_IF_ERROR(Skip(1, value.count, what));
    } else if (value.type == GgufType::kArray) {
      ASSIGN_OR_RETURN(value.element, Type(what));
      if (value.element == GgufType::kArray) {
        return Malformed(begin, absl::StrCat(what, ": arrays of arrays are not read"));
      }
      ASSIGN_OR_RETURN(value.count, Number<uint64_t>(what));
      value.offset = at_;
      RETURN_IF_ERROR(value.element == GgufType::kString
                          ? SkipStrings(value.count, what)
                          : Skip(BytesOf(value.element), value.count, what));
    } else {
      value.offset = at_;
      RETURN_IF_ERROR(Skip(BytesOf(value.type), 1, what));
    }
    const auto [at, fresh] = header_.values.emplace(std::move(key), value);
    if (!fresh) return Malformed(begin, absl::StrCat(what, " stands twice"));
    return absl::OkStatus();
  }

  absl::Status Skip(uint64_t bytes_each, uint64_t count, const std::string& what) {
    uint64_t bytes = 0;
    if (__builtin_mul_overflow(bytes_each, count, &bytes)) {
      bytes = std::numeric_limits<uint64_t>::max();
    }
    RETURN_IF_ERROR(Need(bytes, what));
    at_ += bytes;
    return absl::OkStatus();
  }

  absl::Status SkipStrings(uint64_t count, const std::string& what) {
    if (count > (file_bytes_ - at_) / sizeof(uint64_t)) {
      return absl::DataLossError(absl::StrCat(path_, ": byte ", at_, ": ", what, " has ", count,
                                              " strings, the file ends at ", file_bytes_));
    }
    for (uint64_t i = 0; i < count; ++i) {
      ASSIGN_OR_RETURN(const uint64_t length, Number<uint64_t>(what));
      RETURN_IF_ERROR(Skip(1, length, what));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<uint64_t> Alignment() const {
    const auto found = header_.values.find(kAlignmentKey);
    if (found == header_.values.end()) return kDefaultAlignment;
    uint32_t alignment = 0;
    if (found->second.type == GgufType::kUint32) {
      std::memcpy(&alignment, prefix_.data() + found->second.offset, sizeof(alignment));
    }
    if (!std::has_single_bit(alignment) || alignment > kMaxAlignment) {
      return Malformed(
          found->second.offset,
          absl::StrCat(std::string(kAlignmentKey), " must be a uint32 power of two of at most ",
                       kMaxAlignment, ", got ", std::string(Name(found->second.type)), " ",
                       alignment));
    }
    return alignment;
  }

  // Leaves the offset relative to the data.
  absl::Status ReadTensor(uint64_t alignment) {
    const uint64_t begin = at_;
    GgufTensor tensor;
    ASSIGN_OR_RETURN(tensor.name, NameString("tensor name"));
    const std::string what = absl::StrCat("tensor ", Quoted(tensor.name));
    ASSIGN_OR_RETURN(const uint32_t rank, Number<uint32_t>(what));
    if (rank == 0 || rank > kMaxRank) {
      return Malformed(
          begin, absl::StrCat(what, ": ", rank, " dimensions; 1 to ", kMaxRank, " are allowed"));
    }
    int64_t elements = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      ASSIGN_OR_RETURN(const uint64_t n, Number<uint64_t>(what));
      if (n > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          __builtin_mul_overflow(elements, static_cast<int64_t>(n), &elements)) {
        return Malformed(begin, absl::StrCat(what, ": the number of elements, dimension ", i,
                                             " being ", n, ", does not fit in 63 bits"));
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(n));
    }
    ASSIGN_OR_RETURN(const uint32_t type, Number<uint32_t>(what));
    const auto* const known = std::find_if(std::begin(kElementTypes), std::end(kElementTypes),
                                           [&](const ElementType& t) { return t.number == type; });
    if (known == std::end(kElementTypes)) return UnknownElementType(begin, what, type);
    tensor.dtype = known->dtype;
    const DTypeTraits traits = TraitsOf(tensor.dtype);
    int64_t bytes = 0;
    if (tensor.shape.back() % traits.block_elements != 0 ||
        __builtin_mul_overflow(elements / traits.block_elements, int64_t{traits.block_bytes},
                               &bytes)) {
      return Malformed(
          begin, absl::StrCat(what, ": rows of ", tensor.shape.back(), " elements in ",
                              std::string(traits.name), ", which packs ", traits.block_elements,
                              " at a time; shape [", absl::StrJoin(tensor.shape, ", "), "]"));
    }
    tensor.bytes = static_cast<uint64_t>(bytes);
    ASSIGN_OR_RETURN(tensor.offset, Number<uint64_t>(what));
    if (tensor.offset % alignment != 0) {
      return Malformed(begin, absl::StrCat(what, ": offset ", tensor.offset,
                                           " is not a multiple of the alignment, ", alignment));
    }
    if (!names_.insert(tensor.name).second) {
      return Malformed(begin, absl::StrCat(what, " stands twice"));
    }
    header_.tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status UnknownElementType(uint64_t begin, const std::string& what, uint32_t type) const {
    std::vector<std::string> known;
    for (const ElementType& t : kElementTypes) known.emplace_back(Name(t.dtype));
    return absl::UnimplementedError(
        absl::StrCat(path_, ": byte ", begin, ": ", what, ": element type ", type,
                     " of ggml is not supported; supported are ", absl::StrJoin(known, ", ")));
  }

  // In order of their data the tensors follow each other, each padded to the alignment; so does the
  // end of the file, where the last one's padding may be missing.
  absl::Status PlaceTensors(uint64_t alignment) {
    const auto padded = [&](uint64_t n) { return (n + alignment - 1) / alignment * alignment; };
    const uint64_t data_begin = padded(header_.bytes);
    std::vector<GgufTensor*> order;
    for (GgufTensor& tensor : header_.tensors) order.push_back(&tensor);
    std::sort(order.begin(), order.end(), [](const GgufTensor* a, const GgufTensor* b) {
      return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
    });
    uint64_t end = data_begin;  // in the file
    for (GgufTensor* tensor : order) {
      const std::string what = absl::StrCat(path_, ": tensor ", Quoted(tensor->name));
      if (data_begin > file_bytes_ || tensor->offset > file_bytes_ - data_begin ||
          tensor->bytes > file_bytes_ - data_begin - tensor->offset) {
        return absl::DataLossError(absl::StrCat(what, ": ", tensor->bytes, " bytes at ",
                                                tensor->offset,
                                                " of the data, which begins at byte ", data_begin,
                                                "; the file has only ", file_bytes_, " bytes"));
      }
      tensor->offset += data_begin;
      if (tensor->offset != padded(end)) {
        return absl::InvalidArgumentError(absl::StrCat(
            what, ": begins at byte ", tensor->offset, " of the file, ",
            tensor->offset < padded(end) ? "inside the tensor before it" : "after a hole",
            ": expected ", padded(end)));
      }
      end = tensor->offset + tensor->bytes;
    }
    if (!order.empty() && file_bytes_ > padded(end)) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": byte ", end, ": ", file_bytes_ - end,
                                                     " bytes follow the last tensor ",
                                                     Quoted(order.back()->name)));
    }
    return absl::OkStatus();
  }

  const std::string_view prefix_;
  const uint64_t file_bytes_;
  const std::string& path_;
  uint64_t at_ = 0;
  GgufHeader header_;
  std::set<std::string> names_;
};

}  // namespace

std::string_view Name(GgufType type) {
  constexpr std::string_view kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                         "int32",  "float32", "bool",   "string", "array",
                                         "uint64", "int64",   "float64"};
  return kNames[static_cast<uint32_t>(type)];
}

uint64_t BytesOf(GgufType type) {
  constexpr uint64_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<uint32_t>(type)];
}

absl::StatusOr<GgufHeader> ParseGgufHeader(std::string_view prefix, uint64_t file_bytes,
                                           const std::string& path) {
  return HeaderReader(prefix, file_bytes, path).Read();
}

}  // namespace keyline
