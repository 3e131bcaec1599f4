#include "runtime/engine/session_files.h"

#include <string>

#include "gtest/gtest.h"
#include "tests/runtime/files/temp_dir.h"

namespace keyline {
namespace {

SessionState State() {
  SessionState state;
  state.cache.policy = "h2o";
  state.cache.cache_length = {64};
  state.cache.sinks = 3;
  state.cache.grace = 8;
  state.cache.chunk_size = 48;
  state.cache.max_chunk = 20;
  state.tokens = 77;
  state.pending = {5, 6};
  state.turns = 4;
  state.last_token = 6;
  auto image = std::make_shared<LaneImage>();
  image->tokens = 77;
  image->layers = {"first", std::string(300, '\0'), "last"};
  state.image = image;
  return state;
}

TEST(SessionFile, ComesBackAsItWas) {
  const auto back = DecodeSession(EncodeSession(State(), "m"), "m");
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->cache.policy, "h2o");
  EXPECT_EQ(back->cache.cache_length, std::vector<int>{64});
  EXPECT_EQ(back->cache.sinks, 3);
  EXPECT_EQ(back->cache.grace, 8);
  EXPECT_EQ(back->cache.chunk_size, 48);
  EXPECT_EQ(back->cache.max_chunk, 20);
  EXPECT_EQ(back->tokens, 77);
  EXPECT_EQ(back->pending, (std::vector<int32_t>{5, 6}));
  EXPECT_EQ(back->turns, 4u);
  EXPECT_EQ(back->last_token, 6);
  EXPECT_EQ(back->image->layers, State().image->layers);
  EXPECT_EQ(back->image->tokens, 77);
}

TEST(SessionFile, EveryCutIsDataLoss) {
  const std::string good = EncodeSession(State(), "m");
  for (size_t n = 0; n < good.size(); ++n) {
    EXPECT_EQ(DecodeSession(good.substr(0, n), "m").status().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(DecodeSession(good + "x", "m").status().code(), absl::StatusCode::kDataLoss);
}

TEST(SessionFile, EveryFlippedBitIsFound) {
  const std::string good = EncodeSession(State(), "m");
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    // Bytes 8 to 11 are the version, which is another one then.
    const bool version = bit / 8 >= 8 && bit / 8 < 12;
    EXPECT_EQ(DecodeSession(bad, "m").status().code(),
              version ? absl::StatusCode::kFailedPrecondition : absl::StatusCode::kDataLoss)
        << "bit " << bit;
  }
}

TEST(SessionFile, IsOfOneModel) {
  const auto status = DecodeSession(EncodeSession(State(), "m"), "n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(std::string(status.message()).find("'m'"), std::string::npos) << status;
}

TEST(SessionDir, HoldsFilesUpToItsLimits) {
  const TempDir folder;
  const SessionDir dir(folder.path(), 2, 10);
  const auto a = dir.Write("1234567890");
  ASSERT_TRUE(a.ok()) << a.status();
  EXPECT_EQ(*dir.Read(a->name), "1234567890");
  const auto b = dir.Write("12345678901");
  ASSERT_TRUE(b.ok());
  EXPECT_EQ(dir.Read(b->name).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(dir.Write("x").status().code(), absl::StatusCode::kResourceExhausted);
  const auto list = *dir.List();
  ASSERT_EQ(list.size(), 2u);
  const SavedSession& first = list[list[0].name == a->name ? 0 : 1];
  EXPECT_EQ(first.name, a->name);
  EXPECT_EQ(first.bytes, 10);
  EXPECT_EQ(first.saved, a->saved);
  EXPECT_TRUE(dir.Delete(a->name).ok());
  EXPECT_EQ(dir.List()->size(), 1u);
  EXPECT_TRUE(dir.Write("x").ok());
}

TEST(SessionDir, MustBeThere) {
  const TempDir folder;
  EXPECT_TRUE(SessionDir::Check("").ok());
  EXPECT_TRUE(SessionDir::Check(folder.path()).ok());
  EXPECT_EQ(SessionDir::Check(folder.path() + "/no").code(), absl::StatusCode::kInvalidArgument);
}

TEST(RandomNames, Differ) {
  EXPECT_EQ(RandomName().size(), 32u);
  EXPECT_NE(RandomName(), RandomName());
}

}  // namespace
}  // namespace keyline
