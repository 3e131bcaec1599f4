// Safetensors: what is sound loads, every class of bad input gives one exact error.
#include "runtime/files/safetensors/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/runtime/files/mutate.h"
#include "tests/runtime/files/safetensors_bytes.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// One F32 tensor of four elements.
constexpr const char* kSound = R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})";

std::string Tensor(const std::string& name, const std::string& dtype, const std::string& shape,
                   const std::string& offsets) {
  return absl::StrCat("\"", name, "\":{\"dtype\":", dtype, ",\"shape\":", shape,
                      ",\"data_offsets\":", offsets, "}");
}

std::string OneTensor(const std::string& dtype, const std::string& shape,
                      const std::string& offsets) {
  return absl::StrCat("{", Tensor("a", dtype, shape, offsets), "}");
}

std::string Tensors(const std::vector<std::string>& tensors) {
  return absl::StrCat("{", absl::StrJoin(tensors, ","), "}");
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

BadFile Header(const std::string& name, const std::string& header, size_t data,
               const std::string& message, absl::StatusCode code = kInvalid) {
  return {name, SafetensorsBytes(header, data), code, message};
}

std::string TooManyTensors() {
  std::string header = "{";
  for (int i = 0; i <= 1'000'001; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", i,
                    "\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}");
  }
  return header + "}";
}

std::vector<BadFile> BadFiles() {
  const std::string sound = SafetensorsBytes(kSound, 16);
  const std::string begins =
      "; a safetensors file begins with 8 that tell the length of its header";
  const std::string allowed = " bytes at byte 0; 1 to 100000000 are allowed";
  const std::string integers = "tensor 'a': shape must hold integers from 0 to 2^63 - 1, got ";
  return {
      {"Empty", "", kDataLoss, "has 0 bytes" + begins},
      {"SevenBytes", "1234567", kDataLoss, "has 7 bytes" + begins},
      {"NoHeader", Le64(0) + "{}", kInvalid, "header of 0" + allowed},
      {"HeaderBeyondFile", Le64(60) + kSound, kDataLoss,
       "header of 60 bytes at byte 8, the file has only 63 bytes"},
      {"HeaderOf2To64", Le64(~uint64_t{0}) + kSound, kInvalid,
       "header of 18446744073709551615" + allowed},
      {"HeaderOneTooLong", Le64(100'000'001) + kSound, kInvalid, "header of 100000001" + allowed},
      Header("NotUtf8", "{\"\xff\":{}}", 0,
             "header is not valid JSON at byte 2: syntax error while parsing object key - invalid "
             "string: ill-formed UTF-8 byte"),
      Header("NotJson", "hello", 0,
             "header is not valid JSON at byte 0: syntax error while parsing value - invalid "
             "literal"),
      Header("ArrayAtTop", "[]", 0, "header must be a JSON object, got an array"),
      Header("NumberAtTop", "17", 0, "header must be a JSON object, got 17"),
      Header("Deep", std::string(100'000, '['), 0, "header must be a JSON object, got an array"),
      Header("DeepShape", R"({"a":{"shape":)" + std::string(100'000, '['), 0,
             "tensor 'a': shape must hold integers from 0 to 2^63 - 1, got an array"),
      Header(
          "DuplicateTensor",
          Tensors({Tensor("a", "\"U8\"", "[1]", "[0,1]"), Tensor("a", "\"U8\"", "[1]", "[1,2]")}),
          2, "tensor 'a': stands twice in the header"),
      Header("DuplicateField", R"({"a":{"dtype":"U8","dtype":"U8"}})", 0,
             "tensor 'a': field 'dtype' stands twice"),
      Header("DuplicateMetadata", R"({"__metadata__":{"x":"1"},"__metadata__":{}})", 0,
             "__metadata__: stands twice in the header"),
      Header("MetadataNotText", R"({"__metadata__":{"x":1}})", 0,
             "__metadata__: value of 'x' must be a string, got 1"),
      Header("UnknownField", R"({"a":{"colour":"red"}})", 0,
             "tensor 'a': field 'colour' is unknown; known are dtype, shape, data_offsets"),
      Header("MissingField", R"({"a":{"dtype":"U8","shape":[1]}})", 1,
             "tensor 'a': has no data_offsets"),
      Header("UnknownDtype", OneTensor("\"F31\"", "[4]", "[0,16]"), 16,
             "tensor 'a': dtype 'F31' is unknown; known are BOOL, U8, I8, F8_E4M3, F8_E5M2, "
             "F8_E8M0, I16, U16, F16, BF16, I32, U32, F32, I64, U64, F64"),
      Header("DtypeNumber", OneTensor("32", "[4]", "[0,16]"), 16,
             "tensor 'a': dtype must be a string, got 32"),
      Header("DtypeArray", OneTensor("[\"F32\"]", "[4]", "[0,16]"), 16,
             "tensor 'a': dtype must be a string, got an array"),
      Header("NegativeDimension", OneTensor("\"F32\"", "[-1]", "[0,16]"), 16, integers + "-1"),
      Header("FloatDimension", OneTensor("\"F32\"", "[4.0]", "[0,16]"), 16, integers + "4.0"),
      Header("HugeDimension", OneTensor("\"F32\"", "[1e400]", "[0,16]"), 16,
             "header is not valid JSON at byte 33: number '1e400' is out of range"),
      Header("StringDimension", OneTensor("\"F32\"", "[\"4\"]", "[0,16]"), 16, integers + "'4'"),
      Header("NullShape", OneTensor("\"F32\"", "null", "[0,16]"), 16,
             "tensor 'a': shape must be an array, got null"),
      Header("DimensionOf2To63", OneTensor("\"F32\"", "[9223372036854775808]", "[0,16]"), 16,
             integers + "9223372036854775808"),
      Header("ProductOverflow", OneTensor("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0,
             "tensor 'a': size of shape [4294967296, 4294967296] does not fit in 63 bits"),
      Header("Rank10000",
             OneTensor(
                 "\"F32\"",
                 "[1" +
                     [] {
                       std::string ones;
                       for (int i = 1; i < 10'000; ++i) ones += ",1";
                       return ones;
                     }() +
                     "]",
                 "[0,4]"),
             4, "tensor 'a': shape has more than 8 dimensions"),
      Header("BeginAfterEnd", OneTensor("\"F32\"", "[4]", "[16,0]"), 16,
             "tensor 'a': data_offsets [16, 0] run backwards"),
      Header("ThreeOffsets", OneTensor("\"F32\"", "[4]", "[0,8,16]"), 16,
             "tensor 'a': data_offsets has more than two numbers"),
      Header("OneOffset", OneTensor("\"F32\"", "[4]", "[16]"), 16,
             "tensor 'a': data_offsets must hold two numbers"),
      Header("OffsetBeyondFile", OneTensor("\"U8\"", "[4]", "[1000000000000,1000000000004]"), 4,
             "tensor 'a': ends at byte 1000000000004 of the data, the file has only 4 there: it is "
             "cut short, or the header is wrong",
             kDataLoss),
      Header(
          "Overlap",
          Tensors({Tensor("a", "\"U8\"", "[4]", "[0,4]"), Tensor("b", "\"U8\"", "[4]", "[2,6]")}),
          6, "tensor 'b': begins at byte 2 of the data, inside tensor 'a', which ends at 4"),
      Header(
          "Hole",
          Tensors({Tensor("a", "\"U8\"", "[2]", "[0,2]"), Tensor("b", "\"U8\"", "[2]", "[4,6]")}),
          6, "tensor 'b': begins at byte 4 of the data; no tensor holds the bytes from 2 on"),
      Header("SizeMismatch", OneTensor("\"F32\"", "[5]", "[0,16]"), 16,
             "tensor 'a': shape [5] of F32 takes 20 bytes, data_offsets [0, 16] hold 16"),
      Header("TrailingBytes", kSound, 19,
             "3 bytes follow the last tensor 'a', which ends at byte 16 of the data"),
      Header("DataWithoutTensors", "{}", 3,
             "3 bytes follow the last tensor, which ends at byte 0 of the data"),
      Header("MoreThanAMillion", TooManyTensors(), 0,
             "header opens 1000003 objects; a file may have at most 1000000 tensors"),
      Header("LongName", absl::StrCat("{\"", std::string(512 << 10, 'x'), "\":{}}"), 0,
             absl::StrCat("tensor '", std::string(80, 'x'),
                          "...': its name has 524288 bytes, at most 512 are allowed")),
      Header("NulInName", R"({"a\u0000z":{}})", 0, "tensor 'a\\x00z': its name contains NUL"),
      Header("TrailingText", std::string(kSound) + "x", 16,
             "header is not valid JSON at byte 55: syntax error while parsing value - invalid "
             "literal"),
      {"TruncatedData", sound.substr(0, sound.size() - 1), kDataLoss,
       "tensor 'a': ends at byte 16 of the data, the file has only 15 there: it is cut short, or "
       "the header is wrong"},
      {"TruncatedHeader", sound.substr(0, 30), kDataLoss,
       "header of 55 bytes at byte 8, the file has only 30 bytes"},
  };
}

class BadSafetensors : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadSafetensors, GivesOneExactError) {
  const TempDir dir;
  const std::string path = dir.Write("bad.safetensors", GetParam().bytes);
  const absl::Status status = SafetensorsSource::Open(path).status();
  EXPECT_EQ(status.code(), GetParam().code);
  EXPECT_EQ(std::string(status.message()), path + ": " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Classes, BadSafetensors, ::testing::ValuesIn(BadFiles()),
                         [](const auto& info) { return info.param.name; });

TEST(Safetensors, ReadsTensorsOfEachFloatType) {
  const TempDir dir;
  const std::string header = Tensors({Tensor("f16", "\"F16\"", "[2]", "[12,16]"),
                                      Tensor("f32", "\"F32\"", "[2,1]", "[0,8]"),
                                      Tensor("bf16", "\"BF16\"", "[2]", "[8,12]")});
  const float f32[] = {1.5f, -2.0f};
  const uint16_t bf16[] = {0x3fc0, 0xc000};
  const uint16_t f16[] = {0x3e00, 0xc000};
  std::string data(reinterpret_cast<const char*>(f32), 8);
  data.append(reinterpret_cast<const char*>(bf16), 4);
  data.append(reinterpret_cast<const char*>(f16), 4);
  const auto source =
      SafetensorsSource::Open(dir.Write("x.safetensors", SafetensorsBytes(header, data)));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT((*source)->names(), ElementsAre("bf16", "f16", "f32"));
  for (const char* name : {"f16", "f32", "bf16"}) {
    const auto tensor = (*source)->Find(name);
    ASSERT_TRUE(tensor.ok()) << tensor.status();
    std::vector<float> values(2);
    ASSERT_TRUE(ReadRows(*tensor, 0, tensor->rows(), values.data()).ok());
    EXPECT_THAT(values, ElementsAre(1.5f, -2.0f)) << name;
  }
  const auto matrix = (*source)->Find("f32");
  float second = 0;
  ASSERT_TRUE(ReadRows(*matrix, 1, 1, &second).ok());
  EXPECT_EQ(second, -2.0f);
}

TEST(Safetensors, AcceptsPaddingMetadataAndEmptyTensors) {
  const TempDir dir;
  const std::string header = R"({"__metadata__":{"format":"pt"},)" +
                             Tensor("none", "\"F32\"", "[0,7]", "[4,4]") + "," +
                             Tensor("b", "\"U8\"", "[4]", "[4,8]") + "," +
                             Tensor("scalar", "\"F32\"", "[]", "[0,4]") + "}   \n";
  const auto source =
      SafetensorsSource::Open(dir.Write("x.safetensors", SafetensorsBytes(header, 8)));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_FALSE((*source)->Contains("__metadata__"));
  EXPECT_EQ((*source)->Find("none")->bytes, 0u);
  EXPECT_EQ((*source)->Find("scalar")->rows() * (*source)->Find("scalar")->cols(), 1);
  EXPECT_TRUE(SafetensorsSource::Open(dir.Write("e.safetensors", SafetensorsBytes("{}", 0))).ok());
}

TEST(Safetensors, NamesWhatItDoesNotHaveOrRead) {
  const TempDir dir;
  const std::string path =
      dir.Write("x.safetensors", SafetensorsBytes(OneTensor("\"F64\"", "[1]", "[0,8]"), 8));
  const auto source = SafetensorsSource::Open(path);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Find("b").status(), absl::NotFoundError(path + ": has no tensor 'b'"));
  EXPECT_EQ((*source)->Find("a").status(),
            absl::UnimplementedError(
                path + ": tensor 'a' has dtype F64; F32, F16, BF16, I64, I32, I8 and U8 are read"));
}

TEST(Safetensors, FileCutWhileOpenIsDataLoss) {
  const TempDir dir;
  const std::string path = dir.Write("x.safetensors", SafetensorsBytes(kSound, 16));
  const auto source = SafetensorsSource::Open(path);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto tensor = (*source)->Find("a");
  ASSERT_TRUE(tensor.ok());
  ASSERT_EQ(truncate(path.c_str(), 70), 0);
  std::vector<float> values(4);
  const absl::Status status = ReadRows(*tensor, 0, 1, values.data());
  EXPECT_EQ(status,
            absl::DataLossError(path + ": ends at byte 70, bytes 63 to 79 were to be read; it had "
                                       "79 bytes when it was opened"));
}

TEST(Safetensors, NotARegularFileIsAnError) {
  const TempDir dir;
  EXPECT_TRUE(absl::IsNotFound(SafetensorsSource::Open(dir.Path("none")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SafetensorsSource::Open(dir.path()).status()));
}

constexpr const char* kToDamage =
    R"({"__metadata__":{"k":"v"},"m.a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
    R"("m.b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]},)"
    R"("m.c":{"dtype":"I8","shape":[1,2,1],"data_offsets":[22,24]}})";

TEST(Safetensors, DamagedHeadersEndInAStatus) {
  int sound = 0;
  for (uint64_t seed = 0; seed < 5000; ++seed) {
    const auto entries = ParseSafetensorsHeader(Mutate(kToDamage, seed), 24, "x");
    if (!entries.ok()) continue;
    ++sound;
    uint64_t done = 0;
    for (const SafetensorsEntry& entry : *entries) {
      EXPECT_EQ(entry.begin, done) << seed;
      EXPECT_GE(entry.end, entry.begin) << seed;
      done = entry.end;
    }
    EXPECT_EQ(done, 24u) << seed;
  }
  EXPECT_GT(sound, 5);  // damage to names is not seen
  EXPECT_LT(sound, 1000);
}

TEST(Safetensors, DamagedFilesEndInAStatus) {
  const TempDir dir;
  const std::string sound = SafetensorsBytes(kToDamage, 24);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const auto source = SafetensorsSource::Open(dir.Write("x.safetensors", Mutate(sound, seed)));
    if (!source.ok()) {
      EXPECT_THAT(std::string(source.status().message()), HasSubstr("x.safetensors: "));
      continue;
    }
    for (const std::string& name : (*source)->names()) {
      const auto tensor = (*source)->Find(name);
      if (!tensor.ok() || !IsFloat(tensor->dtype)) continue;
      std::vector<float> values(tensor->rows() * tensor->cols());
      EXPECT_TRUE(ReadRows(*tensor, 0, tensor->rows(), values.data()).ok()) << seed;
    }
  }
}

class SafetensorsIndex : public ::testing::Test {
 protected:
  absl::Status Open(const std::string& index) {
    const std::string path = dir_.Write("model.safetensors.index.json", index);
    const auto source = SafetensorsSource::OpenIndex(path);
    if (source.ok()) return absl::OkStatus();
    std::string message(source.status().message());
    const size_t folder = message.find(dir_.path() + "/");
    if (folder != std::string::npos) message.erase(folder, dir_.path().size() + 1);
    return absl::Status(source.status().code(), message);
  }
  TempDir dir_;
};

TEST_F(SafetensorsIndex, TakesEachTensorFromItsShard) {
  dir_.Write("one.safetensors", SafetensorsBytes(kSound, std::string(16, '\0')));
  dir_.Write("two.safetensors", SafetensorsBytes(Tensors({Tensor("a", "\"U8\"", "[4]", "[0,4]"),
                                                          Tensor("b", "\"F32\"", "[1]", "[4,8]")}),
                                                 std::string(8, '\0')));
  const std::string path = dir_.Write(
      "model.safetensors.index.json",
      R"({"metadata":{"total_size":20},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto source = SafetensorsSource::OpenIndex(path);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_THAT((*source)->names(), ElementsAre("a", "b"));
  EXPECT_EQ((*source)->Find("a")->dtype, DType::kF32);
  EXPECT_EQ((*source)->Find("b")->bytes, 4u);
}

TEST_F(SafetensorsIndex, BadOnesGiveExactErrors) {
  const std::string file = "model.safetensors.index.json: ";
  const std::string no_map = file + "has no weight_map object of tensor names to shards";
  for (const char* index : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})"}) {
    EXPECT_EQ(Open(index), absl::InvalidArgumentError(no_map)) << index;
  }
  for (const char* shard : {"../x.safetensors", "/etc/passwd", "a/b", "..", ".", ""}) {
    EXPECT_EQ(
        Open(absl::StrCat(R"({"weight_map":{"a":")", shard, R"("}})")),
        absl::InvalidArgumentError(absl::StrCat(file, "weight_map: tensor 'a': shard '", shard,
                                                "' is not the plain name of a file beside it")))
        << shard;
  }
  EXPECT_EQ(Open(R"({"weight_map":{"a":1}})"),
            absl::InvalidArgumentError(
                file + "weight_map: tensor 'a': the shard must be a string, got number"));
  EXPECT_EQ(Open(R"({"weight_map":{"a":"x","a":"y"}})"),
            absl::InvalidArgumentError(file + "key 'a' stands twice in one object"));
  EXPECT_EQ(Open(R"({"weight_map":{"a":"none.safetensors"}})"),
            absl::NotFoundError("none.safetensors: cannot open: No such file or directory"));
  dir_.Write("one.safetensors", SafetensorsBytes(kSound, 16));
  EXPECT_EQ(Open(R"({"weight_map":{"z":"one.safetensors"}})"),
            absl::InvalidArgumentError(file +
                                       "weight_map: tensor 'z' is not in shard 'one.safetensors'"));
}

}  // namespace
}  // namespace keyline
