// Token ids in each form, told apart by content; and the writer of safetensors.
#include "runtime/files/token_ids_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "runtime/files/safetensors/safetensors.h"
#include "runtime/files/safetensors/safetensors_writer.h"
#include "tests/runtime/files/safetensors_bytes.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

using ::testing::ElementsAre;

class TokenIdsFile : public ::testing::Test {
 protected:
  // Written under a name that tells nothing.
  absl::StatusOr<std::vector<std::vector<int32_t>>> Read(const std::string& bytes) {
    return ReadTokenIds(dir_.Write("ids", bytes));
  }
  absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(path_ + what); }

  const TempDir dir_;
  const std::string path_ = dir_.Path("ids");
};

template <class T>
std::string BytesOf(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

TEST_F(TokenIdsFile, JsonInThreeForms) {
  EXPECT_THAT(*Read("[1,2,3]"), ElementsAre(ElementsAre(1, 2, 3)));
  EXPECT_THAT(*Read("[[1,2],[2147483647]]"),
              ElementsAre(ElementsAre(1, 2), ElementsAre(2147483647)));
  EXPECT_THAT(*Read(R"({"text":"x","token_ids":[4,5]})"), ElementsAre(ElementsAre(4, 5)));
  EXPECT_THAT(*Read(R"( {"token_ids":[[4],[5]]})"), ElementsAre(ElementsAre(4), ElementsAre(5)));
}

TEST_F(TokenIdsFile, SafetensorsInBothWidthsAndRanks) {
  const std::string narrow = R"({"token_ids":{"dtype":"I32","shape":[2,2],"data_offsets":[0,16]}})";
  EXPECT_THAT(*Read(SafetensorsBytes(narrow, BytesOf<int32_t>({1, 2, 3, 4}))),
              ElementsAre(ElementsAre(1, 2), ElementsAre(3, 4)));
  const std::string wide = R"({"token_ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}})";
  EXPECT_THAT(*Read(SafetensorsBytes(wide, BytesOf<int64_t>({7, 8}))),
              ElementsAre(ElementsAre(7, 8)));
  EXPECT_EQ(Read(SafetensorsBytes(wide, BytesOf<int64_t>({7, int64_t{1} << 31}))).status(),
            Bad(": token_ids: sequence 0, token 1: must be an integer from 0 to 2^31 - 1, got "
                "2147483648"));
  EXPECT_EQ(Read(SafetensorsBytes(narrow, BytesOf<int32_t>({1, 2, -3, 4}))).status(),
            Bad(": token_ids: sequence 1, token 0: must be an integer from 0 to 2^31 - 1, got -3"));
}

TEST_F(TokenIdsFile, GoldenModelsHaveThem) {
  const auto ids = ReadTokenIds("tests/golden/dense/llama/expected.safetensors");
  ASSERT_TRUE(ids.ok()) << ids.status();
  ASSERT_EQ(ids->size(), 2u);
  EXPECT_EQ((*ids)[0].size(), 160u);
}

TEST_F(TokenIdsFile, BadOnesGiveExactErrors) {
  const std::string must =
      ": must hold a list of token ids, a list of such lists, or an object with "
      "token_ids";
  EXPECT_EQ(Read("[]").status(), Bad(must));
  EXPECT_EQ(Read("17").status(), Bad(must));
  EXPECT_EQ(Read("{}").status(), Bad(": the object has no token_ids"));
  EXPECT_EQ(Read("[[1],[]]").status(),
            Bad(": token_ids: sequence 1 must be a list of at least one token"));
  EXPECT_EQ(Read("[[1],2]").status(),
            Bad(": token_ids: sequence 1 must be a list of at least one token"));
  const std::string range = ": must be an integer from 0 to 2^31 - 1, got ";
  EXPECT_EQ(Read("[1,-1]").status(), Bad(": token_ids: sequence 0, token 1" + range + "-1"));
  EXPECT_EQ(Read("[1.5]").status(), Bad(": token_ids: sequence 0, token 0" + range + "1.5"));
  EXPECT_EQ(Read("[1,\"2\"]").status(), Bad(": token_ids: sequence 0, token 1" + range + "string"));
  EXPECT_EQ(Read("[[3],[4294967296]]").status(),
            Bad(": token_ids: sequence 1, token 0" + range + "4294967296"));
  const std::string floats = R"({"token_ids":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  EXPECT_EQ(Read(SafetensorsBytes(floats, 4)).status(),
            Bad(": token_ids must be i32 or i64 [tokens] or [sequences, tokens], got f32 [1]"));
  const std::string other = R"({"ids":{"dtype":"I32","shape":[1],"data_offsets":[0,4]}})";
  EXPECT_EQ(Read(SafetensorsBytes(other, 4)).status(),
            absl::NotFoundError(path_ + ": has no tensor 'token_ids'"));
  EXPECT_TRUE(absl::IsNotFound(ReadTokenIds(dir_.Path("none")).status()));
}

TEST(SafetensorsWriter, WhatIsWrittenInPiecesReadsBack) {
  const TempDir dir;
  const std::string path = dir.Path("out.safetensors");
  auto writer = SafetensorsWriter::Create(
      path, {{"logits", DType::kF32, {2, 3}}, {"token_ids", DType::kI32, {2}}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<float> logits = {0, 1, 2, 3, 4, 5};
  ASSERT_TRUE(writer->Append(std::span(logits).first(2)).ok());
  ASSERT_TRUE(writer->Append(std::span(logits).subspan(2)).ok());
  EXPECT_TRUE(absl::IsDataLoss(SafetensorsSource::Open(path).status()));  // not finished
  ASSERT_TRUE(writer->Append(std::vector<int32_t>{8, 9}).ok());
  ASSERT_TRUE(writer->Finish().ok());

  const auto source = SafetensorsSource::Open(path);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto tensor = (*source)->Find("logits");
  ASSERT_TRUE(tensor.ok());
  EXPECT_THAT(tensor->shape, ElementsAre(2, 3));
  EXPECT_EQ(tensor->file_offset % 8, 0u);
  std::vector<float> read(6);
  ASSERT_TRUE(ReadRows(*tensor, 0, 2, read.data()).ok());
  EXPECT_EQ(read, logits);
  EXPECT_THAT(*ReadTokenIds(path), ElementsAre(ElementsAre(8, 9)));
}

TEST(SafetensorsWriter, NamesThePathItCannotWrite) {
  const auto writer = SafetensorsWriter::Create("/nonexistent/out", {});
  EXPECT_EQ(writer.status(),
            absl::NotFoundError("/nonexistent/out: cannot create: No such file or directory"));
}

TEST(SafetensorsWriter, FullDiskIsAnError) {
  auto writer = SafetensorsWriter::Create("/dev/full", {{"x", DType::kF32, {1}}});
  EXPECT_TRUE(absl::IsResourceExhausted(writer.status())) << writer.status();
}

}  // namespace
}  // namespace keyline
