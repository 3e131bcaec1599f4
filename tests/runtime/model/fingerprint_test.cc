#include "runtime/model/fingerprint.h"

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "runtime/files/checkpoint.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

std::string Fingerprint(const std::string& path, DType dtype = DType::kF32,
                        WeightStorage storage = WeightStorage::kPlain) {
  const auto checkpoint = OpenCheckpoint(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto config = LoadModelConfig(*checkpoint);
  EXPECT_TRUE(config.ok()) << config.status();
  const auto model = MakeModel(*config);
  const auto fingerprint = ModelFingerprint(**model, *checkpoint->weights, dtype, storage);
  EXPECT_TRUE(fingerprint.ok()) << fingerprint.status();
  return fingerprint.value_or("");
}

TEST(Fingerprint, IsTheModelsOwn) {
  const std::string llama = Fingerprint("tests/golden/dense/llama");
  EXPECT_EQ(llama.substr(0, 8), "llama-3x") << llama;
  EXPECT_EQ(Fingerprint("tests/golden/dense/llama"), llama);
  EXPECT_NE(Fingerprint("tests/golden/dense/llama", DType::kBF16), llama);
  EXPECT_NE(Fingerprint("tests/golden/dense/llama", DType::kF32, WeightStorage::kInt8), llama);
  EXPECT_NE(Fingerprint("tests/golden/dense/llama3-rope"), llama);
  EXPECT_NE(Fingerprint("tests/golden/dense/qwen3-qknorm-tied"), llama);
}

TEST(Fingerprint, AnotherWeightOrRopeIsAnotherModel) {
  const TempDir copy;
  for (const char* name : {"config.json", "model.safetensors"}) {
    std::filesystem::copy(std::string("tests/golden/dense/llama/") + name, copy.Path(name));
  }
  const std::string before = Fingerprint(copy.path());
  EXPECT_EQ(before, Fingerprint("tests/golden/dense/llama"));
  {
    // The file's last byte is of a weight.
    std::fstream file(copy.Path("model.safetensors"),
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char last = static_cast<char>(file.peek());
    file.seekp(-1, std::ios::end);
    file.put(static_cast<char>(last ^ 1));
  }
  const std::string changed = Fingerprint(copy.path());
  EXPECT_NE(changed, before);
}

}  // namespace
}  // namespace keyline
