// GGUF: metadata and tensors of sound files, one exact error for each class of bad ones.
#include "runtime/files/gguf/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/files/gguf/gguf_names.h"
#include "tests/runtime/files/gguf_bytes.h"
#include "tests/runtime/files/mutate.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kArchitecture = Pair("general.architecture", std::string("llama"));

// Two heads of queries and one of keys, of four rows each; 1, 2, 3 in two other tensors.
std::string SmallLlama() {
  GgufFloats floats;
  floats.Add("blk.0.attn_q.weight", {1, 8}, {0, 2, 1, 3, 10, 12, 11, 13});
  floats.Add("blk.0.attn_k.weight", {1, 4}, {0, 2, 1, 3});
  floats.Add("blk.0.attn_v.weight", {1, 4}, {0, 2, 1, 3});
  floats.Add("rope_freqs.weight", {3}, {1, 2, 3});
  return GgufBytes({kArchitecture, Pair("llama.attention.head_count", 2u),
                    Pair("llama.attention.head_count_kv", 1u)},
                   floats.entries, floats.data);
}

struct BadFile {
  std::string name;
  std::string bytes;
  absl::StatusCode code;
  std::string message;  // after the path
};

std::ostream& operator<<(std::ostream& out, const BadFile& file) { return out << file.name; }

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

std::string Counts(uint64_t tensors, uint64_t pairs) {
  return absl::StrCat("GGUF", Le<uint32_t>(3), Le(tensors), Le(pairs));
}

std::string WithPair(const std::string& pair) { return GgufBytes({pair}, {}, ""); }

// A file with the architecture and these tensors; the list of them begins at byte 69.
std::string WithTensors(const std::vector<std::string>& entries, size_t data_bytes) {
  return GgufBytes({kArchitecture}, entries, std::string(data_bytes, '\0'));
}
constexpr const char* kAtFirstTensor = "byte 69: ";

std::vector<BadFile> BadFiles() {
  const uint64_t huge = ~uint64_t{0};
  const std::string one = GgufTensorEntry("t", {8}, 0, 0);
  return {
      {"Empty", "", kDataLoss, "byte 0: magic takes 4 bytes, the file ends at 0"},
      {"ThreeBytes", "GGU", kDataLoss, "byte 0: magic takes 4 bytes, the file ends at 3"},
      {"OtherMagic", "PK\3\4 and so on", kInvalid,
       "byte 0: is not a GGUF file: it does not begin with 'GGUF'"},
      {"Version1", "GGUF" + Le<uint32_t>(1), kInvalid, "byte 4: GGUF version 1; 2 and 3 are read"},
      {"BigEndian", "GGUF" + Le<uint32_t>(3u << 24), kInvalid,
       "byte 4: GGUF version 50331648; 2 and 3 are read (a big-endian file?)"},
      {"NoCounts", "GGUF" + Le<uint32_t>(3), kDataLoss,
       "byte 8: tensor count takes 8 bytes, the file ends at 8"},
      {"TooManyTensors", Counts(huge, 0), kInvalid,
       "byte 8: 18446744073709551615 tensors; a file of 24 bytes has at most 1"},
      {"TooManyValues", Counts(0, 1 << 20) + std::string(20 << 20, '\0'), kInvalid,
       "byte 16: 1048576 metadata values; a file of 20971544 bytes has at most 65536"},
      {"ValuesMissing", Counts(0, 1), kDataLoss,
       "byte 24: length of metadata key takes 8 bytes, the file ends at 24"},
      {"EmptyKey", WithPair(Pair("", 1u)), kInvalid,
       "byte 24: metadata key of 0 bytes; 1 to 512 are allowed"},
      {"LongKey", WithPair(Pair(std::string(513, 'k'), 1u)), kInvalid,
       "byte 24: metadata key of 513 bytes; 1 to 512 are allowed"},
      {"KeyBeyondFile", Counts(0, 1) + Le<uint64_t>(500) + "abc", kDataLoss,
       "byte 32: metadata key takes 500 bytes, the file ends at 35"},
      {"NulInKey", WithPair(Pair(std::string("a\0z", 3), 1u)), kInvalid,
       "byte 24: metadata key 'a\\x00z' contains NUL"},
      {"UnknownType", WithPair(GgufPair("k", GgufType{13}, "")), kInvalid,
       "byte 33: key 'k': type 13 is unknown"},
      {"StringBeyondFile", Counts(0, 1) + GgufPair("k", GgufType::kString, Le(huge)), kDataLoss,
       "byte 45: key 'k' takes 18446744073709551615 bytes, the file ends at 45"},
      {"ArrayBeyondFile",
       Counts(0, 1) + GgufPair("k", GgufType::kArray, Le<uint32_t>(4) + Le<uint64_t>(1 << 30)),
       kDataLoss, "byte 49: key 'k' takes 4294967296 bytes, the file ends at 49"},
      {"ArrayOverflow",
       Counts(0, 1) + GgufPair("k", GgufType::kArray, Le<uint32_t>(12) + Le(huge / 4)), kDataLoss,
       "byte 49: key 'k' takes 18446744073709551615 bytes, the file ends at 49"},
      {"StringsBeyondFile",
       Counts(0, 1) + GgufPair("k", GgufType::kArray, Le<uint32_t>(8) + Le(huge)), kDataLoss,
       "byte 49: key 'k' has 18446744073709551615 strings, the file ends at 49"},
      {"NestedArray",
       WithPair(GgufPair("k", GgufType::kArray, Le<uint32_t>(9) + Le<uint64_t>(1) + Le(huge))),
       kInvalid, "byte 24: key 'k': arrays of arrays are not read"},
      {"DuplicateKey", GgufBytes({Pair("k", 1u), Pair("k", 2u)}, {}, ""), kInvalid,
       "byte 41: key 'k' stands twice"},
      {"AlignmentOfThree", WithPair(Pair("general.alignment", 3u)), kInvalid,
       "byte 53: general.alignment must be a uint32 power of two of at most 1048576, got uint32 3"},
      {"AlignmentOfZero", WithPair(Pair("general.alignment", 0u)), kInvalid,
       "byte 53: general.alignment must be a uint32 power of two of at most 1048576, got uint32 0"},
      {"AlignmentText", WithPair(Pair("general.alignment", std::string("32"))), kInvalid,
       "byte 61: general.alignment must be a uint32 power of two of at most 1048576, got string 0"},
      {"NoArchitecture", GgufBytes({}, {}, ""), absl::StatusCode::kNotFound,
       "has no metadata 'general.architecture'"},
      {"ArchitectureNumber", WithPair(Pair("general.architecture", 7u)), kInvalid,
       "metadata 'general.architecture' must be a string, got uint32"},
      {"OneOfSeveral",
       GgufBytes({kArchitecture, GgufPair("split.count", GgufType::kUint16, Le<uint16_t>(3))}, {},
                 ""),
       kUnimplemented,
       "is one of 3 parts (split.count); join them with 'llama-gguf-split --merge'"},
      {"TensorMissing",
       Counts(1, 0) + Le<uint64_t>(1) + std::string(20, 't').substr(0, 1) + std::string(3, '\0'),
       kDataLoss, "byte 33: tensor 't' takes 4 bytes, the file ends at 36"},
      {"LongTensorName", WithTensors({GgufTensorEntry(std::string(600, 'n'), {8}, 0, 0)}, 32),
       kInvalid, absl::StrCat(kAtFirstTensor, "tensor name of 600 bytes; 1 to 512 are allowed")},
      {"Rank0", WithTensors({GgufTensorEntry("t", {}, 0, 0)}, 32), kInvalid,
       absl::StrCat(kAtFirstTensor, "tensor 't': 0 dimensions; 1 to 4 are allowed")},
      {"Rank5", WithTensors({GgufTensorEntry("t", {1, 1, 1, 1, 1}, 0, 0)}, 32), kInvalid,
       absl::StrCat(kAtFirstTensor, "tensor 't': 5 dimensions; 1 to 4 are allowed")},
      {"DimensionOf2To64", WithTensors({GgufTensorEntry("t", {huge}, 0, 0)}, 32), kInvalid,
       absl::StrCat(kAtFirstTensor, "tensor 't': the number of elements, dimension 0 being ", huge,
                    ", does not fit in 63 bits")},
      {"ProductOverflow", WithTensors({GgufTensorEntry("t", {1ull << 32, 1ull << 32}, 0, 0)}, 32),
       kInvalid,
       absl::StrCat(kAtFirstTensor,
                    "tensor 't': the number of elements, dimension 1 being 4294967296, does not "
                    "fit in 63 bits")},
      {"UnknownElementType", WithTensors({GgufTensorEntry("t", {8}, 23, 0)}, 32), kUnimplemented,
       absl::StrCat(kAtFirstTensor,
                    "tensor 't': element type 23 of ggml is not supported; supported are f32, f16, "
                    "q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k, i8, i32, i64, bf16")},
      {"RowsNotWholeBlocks", WithTensors({GgufTensorEntry("t", {48, 2}, 8, 0)}, 102), kInvalid,
       absl::StrCat(kAtFirstTensor,
                    "tensor 't': rows of 48 elements in q8_0, which packs 32 at a time; shape "
                    "[2, 48]")},
      {"OffsetNotAligned", WithTensors({GgufTensorEntry("t", {8}, 0, 8)}, 64), kInvalid,
       absl::StrCat(kAtFirstTensor, "tensor 't': offset 8 is not a multiple of the alignment, 32")},
      {"DuplicateTensor", WithTensors({one, GgufTensorEntry("t", {8}, 0, 32)}, 64), kInvalid,
       "byte 102: tensor 't' stands twice"},
      {"SameTensorByTwoNames",
       WithTensors({GgufTensorEntry("output.weight", {8}, 0, 0),
                    GgufTensorEntry("lm_head.weight", {8}, 0, 32)},
                   64),
       kInvalid, "tensor 'lm_head.weight': stands twice, once as 'lm_head.weight'"},
      {"OffsetBeyondFile", WithTensors({GgufTensorEntry("t", {8}, 0, 1ull << 62)}, 32), kDataLoss,
       "tensor 't': 32 bytes at 4611686018427387904 of the data, which begins at byte 128; the "
       "file has only 160 bytes"},
      {"Truncated", WithTensors({one}, 31), kDataLoss,
       "tensor 't': 32 bytes at 0 of the data, which begins at byte 128; the file has only 159 "
       "bytes"},
      {"Overlap",
       WithTensors({GgufTensorEntry("a", {16}, 0, 0), GgufTensorEntry("b", {8}, 0, 32)}, 64),
       kInvalid,
       "tensor 'b': begins at byte 192 of the file, inside the tensor before it: expected 224"},
      {"Hole", WithTensors({one, GgufTensorEntry("u", {8}, 0, 64)}, 96), kInvalid,
       "tensor 'u': begins at byte 224 of the file, after a hole: expected 192"},
      {"TrailingBytes", WithTensors({one}, 33), kInvalid,
       "byte 160: 1 bytes follow the last tensor 't'"},
      {"HeadsDoNotDivide",
       GgufBytes({kArchitecture, Pair("llama.attention.head_count", 3u)},
                 {GgufTensorEntry("blk.0.attn_q.weight", {1, 8}, 0, 0)}, std::string(32, '\0')),
       kInvalid, "tensor 'blk.0.attn_q.weight': 8 rows are not pairs of 3 heads"},
      {"NoHeadCount",
       GgufBytes({kArchitecture}, {GgufTensorEntry("blk.0.attn_q.weight", {1, 8}, 0, 0)},
                 std::string(32, '\0')),
       absl::StatusCode::kNotFound, "has no metadata 'llama.attention.head_count'"},
  };
}

class BadGguf : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadGguf, GivesOneExactError) {
  const TempDir dir;
  const std::string path = dir.Write("bad.gguf", GetParam().bytes);
  const absl::Status status = GgufFile::Open(path).status();
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_EQ(std::string(status.message()), path + ": " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Classes, BadGguf, ::testing::ValuesIn(BadFiles()),
                         [](const auto& info) { return info.param.name; });

std::vector<float> Rows(const GgufFile& file, const std::string& name, int64_t first,
                        int64_t count) {
  const auto tensor = file.Find(name);
  if (!tensor.ok()) {
    ADD_FAILURE() << tensor.status();
    return {};
  }
  std::vector<float> values(count * tensor->cols());
  const absl::Status status = ReadRows(*tensor, first, count, values.data());
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

TEST(Gguf, LlamaRowsComeBackInTheOrderOfHalves) {
  const TempDir dir;
  const auto file = GgufFile::Open(dir.Write("m.gguf", SmallLlama()));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string q = "model.layers.0.self_attn.q_proj.weight";
  EXPECT_THAT(Rows(**file, q, 0, 8), ElementsAre(0, 1, 2, 3, 10, 11, 12, 13));
  // Any range of rows, across heads and within one.
  for (int64_t first = 0; first < 8; ++first) {
    for (int64_t count = 0; first + count <= 8; ++count) {
      std::vector<float> expected;
      for (int64_t i = first; i < first + count; ++i) expected.push_back(i < 4 ? i : i + 6);
      EXPECT_EQ(Rows(**file, q, first, count), expected) << first << "+" << count;
    }
  }
  EXPECT_THAT(Rows(**file, "model.layers.0.self_attn.k_proj.weight", 0, 4),
              ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Rows(**file, "model.layers.0.self_attn.v_proj.weight", 0, 4),
              ElementsAre(0, 2, 1, 3));
  EXPECT_THAT(Rows(**file, "rope_freqs.weight", 0, 1), ElementsAre(1, 2, 3));
}

TEST(Gguf, OnlyTheLlamaFamilyInterleaves) {
  EXPECT_EQ(RowsOf("llama", "blk.11.attn_q.bias"), GgufRows::kQueryHeads);
  EXPECT_EQ(RowsOf("llama", "blk.11.attn_k.weight"), GgufRows::kKeyHeads);
  EXPECT_EQ(RowsOf("llama", "blk.11.attn_k_norm.weight"), GgufRows::kPlain);
  EXPECT_EQ(RowsOf("llama", "attn_q.weight"), GgufRows::kPlain);
  EXPECT_EQ(RowsOf("qwen3", "blk.11.attn_q.weight"), GgufRows::kPlain);
}

TEST(Gguf, NamesAreHuggingFaces) {
  const std::pair<const char*, const char*> names[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"output.weight", "lm_head.weight"},
      {"blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"},
      {"blk.12.attn_q.bias", "model.layers.12.self_attn.q_proj.bias"},
      {"blk.3.attn_k.weight", "model.layers.3.self_attn.k_proj.weight"},
      {"blk.3.attn_v.weight", "model.layers.3.self_attn.v_proj.weight"},
      {"blk.3.attn_output.weight", "model.layers.3.self_attn.o_proj.weight"},
      {"blk.3.attn_q_norm.weight", "model.layers.3.self_attn.q_norm.weight"},
      {"blk.3.attn_k_norm.weight", "model.layers.3.self_attn.k_norm.weight"},
      {"blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"},
      {"blk.3.ffn_gate.weight", "model.layers.3.mlp.gate_proj.weight"},
      {"blk.3.ffn_up.weight", "model.layers.3.mlp.up_proj.weight"},
      {"blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"},
      {"rope_freqs.weight", "rope_freqs.weight"},
      {"blk.3.unheard_of.weight", "blk.3.unheard_of.weight"},
      {"blk", "blk"},
      {"blk.", "blk."},
      {"", ""},
  };
  for (const auto& [gguf, hugging_face] : names) EXPECT_EQ(HuggingFaceName(gguf), hugging_face);
}

TEST(Gguf, MetadataOfEachType) {
  const TempDir dir;
  const auto number = [](const char* key, GgufType type, const auto& value) {
    return GgufPair(key, type, Le(value));
  };
  const std::string path = dir.Write(
      "m.gguf", GgufBytes({kArchitecture,
                           number("u8", GgufType::kUint8, uint8_t{200}),
                           number("i8", GgufType::kInt8, int8_t{-3}),
                           number("u16", GgufType::kUint16, uint16_t{60000}),
                           number("i16", GgufType::kInt16, int16_t{-300}),
                           number("u32", GgufType::kUint32, uint32_t{4000000000}),
                           number("i32", GgufType::kInt32, int32_t{-70000}),
                           number("u64", GgufType::kUint64, uint64_t{1} << 62),
                           number("over", GgufType::kUint64, ~uint64_t{0}),
                           number("i64", GgufType::kInt64, int64_t{-5}),
                           number("f32", GgufType::kFloat32, 0.5f),
                           number("f64", GgufType::kFloat64, 0.25),
                           GgufPair("yes", GgufType::kBool, "\1"),
                           GgufPair("no", GgufType::kBool, std::string(1, '\0')),
                           Pair("text", std::string("a\0b", 3)),
                           Pair("none", std::string()),
                           Pair("texts", GgufType::kString,
                                {GgufString("one"), GgufString(""), GgufString("three")}),
                           Pair("ints", GgufType::kInt32, {Le<int32_t>(-1), Le<int32_t>(7)}),
                           Pair("floats", GgufType::kFloat32, {Le(1.5f), Le(-2.5f)}),
                           Pair("empty", GgufType::kString, {})},
                          {}, ""));
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const GgufFile& f = **file;
  EXPECT_EQ(f.architecture(), "llama");
  EXPECT_EQ(*f.Integer("u8"), 200);
  EXPECT_EQ(*f.Integer("i8"), -3);
  EXPECT_EQ(*f.Integer("u16"), 60000);
  EXPECT_EQ(*f.Integer("i16"), -300);
  EXPECT_EQ(*f.Integer("u32"), 4000000000);
  EXPECT_EQ(*f.Integer("i32"), -70000);
  EXPECT_EQ(*f.Integer("u64"), int64_t{1} << 62);
  EXPECT_EQ(*f.Integer("i64"), -5);
  EXPECT_EQ(*f.Number("f32"), 0.5);
  EXPECT_EQ(*f.Number("f64"), 0.25);
  EXPECT_EQ(*f.Number("i16"), -300.0);
  EXPECT_TRUE(*f.Boolean("yes"));
  EXPECT_FALSE(*f.Boolean("no"));
  EXPECT_EQ(*f.String("text"), std::string_view("a\0b", 3));
  EXPECT_EQ(*f.String("none"), "");
  EXPECT_THAT(*f.Strings("texts"), ElementsAre("one", "", "three"));
  EXPECT_THAT(*f.Strings("empty"), ElementsAre());
  EXPECT_THAT(*f.Integers("ints"), ElementsAre(-1, 7));
  EXPECT_THAT(*f.Numbers("floats"), ElementsAre(1.5f, -2.5f));
  EXPECT_THAT(*f.Numbers("ints"), ElementsAre(-1.0f, 7.0f));
  EXPECT_TRUE(f.Has("text"));
  EXPECT_FALSE(f.Has("texte"));

  const auto wrong = [&path](const std::string& what) {
    return absl::InvalidArgumentError(path + ": metadata " + what);
  };
  EXPECT_EQ(f.Integer("text").status(), wrong("'text' must be an integer, got string"));
  EXPECT_EQ(f.Integer("f32").status(), wrong("'f32' must be an integer, got float32"));
  EXPECT_EQ(f.Integer("over").status(), wrong("'over' must be at most 2^63 - 1, got uint64"));
  EXPECT_EQ(f.Number("yes").status(), wrong("'yes' must be a number, got bool"));
  EXPECT_EQ(f.Boolean("u8").status(), wrong("'u8' must be a bool, got uint8"));
  EXPECT_EQ(f.String("texts").status(), wrong("'texts' must be a string, got array of string"));
  EXPECT_EQ(f.Strings("text").status(), wrong("'text' must be an array, got string"));
  EXPECT_EQ(f.Strings("ints").status(),
            wrong("'ints' must be an array of strings, got array of int32"));
  EXPECT_EQ(f.Integers("floats").status(),
            wrong("'floats' must be an array of integers, got array of float32"));
  EXPECT_EQ(f.Numbers("texts").status(),
            wrong("'texts' must be an array of numbers, got array of string"));
  EXPECT_EQ(f.Numbers("absent").status(), absl::NotFoundError(path + ": has no metadata 'absent'"));
}

TEST(Gguf, HeaderLongerThanTheFirstReadIsReadOn) {
  const TempDir dir;
  std::vector<std::string> tokens(300'000, GgufString("some token of a vocabulary"));
  tokens.back() = GgufString("last");
  GgufFloats floats;
  floats.Add("output_norm.weight", {2}, {1, 2});
  const auto file = GgufFile::Open(
      dir.Write("m.gguf", GgufBytes({kArchitecture, Pair("tokens", GgufType::kString, tokens)},
                                    floats.entries, floats.data)));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file.value()->Strings("tokens")->back(), "last");
  EXPECT_THAT(Rows(**file, "model.norm.weight", 0, 1), ElementsAre(1, 2));
}

TEST(Gguf, FileCutWhileOpenIsDataLoss) {
  const TempDir dir;
  const std::string path = dir.Write("m.gguf", SmallLlama());
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto tensor = (*file)->Find("rope_freqs.weight");
  ASSERT_TRUE(tensor.ok());
  ASSERT_EQ(truncate(path.c_str(), static_cast<off_t>(tensor->file_offset) + 4), 0);
  std::vector<float> values(3);
  const absl::Status status = ReadRows(*tensor, 0, 1, values.data());
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat(path, ": ends at byte ", tensor->file_offset + 4)));
}

TEST(Gguf, DamagedHeadersEndInAStatus) {
  const std::string sound = SmallLlama();
  int read = 0;
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const std::string bytes = Mutate(sound, seed);
    const auto header = ParseGgufHeader(bytes, bytes.size(), "x");
    EXPECT_FALSE(absl::IsOutOfRange(header.status())) << seed;  // all of the file was there
    if (!header.ok()) continue;
    ++read;
    for (const GgufTensor& tensor : header->tensors) {
      EXPECT_LE(tensor.offset + tensor.bytes, bytes.size()) << seed;
    }
    for (const auto& [key, value] : header->values) {
      EXPECT_LE(value.offset, header->bytes) << seed;
    }
  }
  EXPECT_GT(read, 100);
  EXPECT_LT(read, 4000);
}

TEST(Gguf, DamagedFilesEndInAStatus) {
  const TempDir dir;
  const std::string sound = SmallLlama();
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const auto file = GgufFile::Open(dir.Write("m.gguf", Mutate(sound, seed)));
    if (!file.ok()) continue;
    for (const std::string& name : (*file)->names()) {
      const auto tensor = (*file)->Find(name);
      ASSERT_TRUE(tensor.ok());
      if (!IsFloat(tensor->dtype)) continue;
      std::vector<float> values(tensor->rows() * tensor->cols());
      EXPECT_TRUE(ReadRows(*tensor, 0, tensor->rows(), values.data()).ok()) << seed;
    }
  }
}

}  // namespace
}  // namespace keyline
