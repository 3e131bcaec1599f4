// The choice of the lowest slots, against sorting.
#include "kernels/cpu/cache/select_slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace keyline::cpu {
namespace {

std::vector<int32_t> Sorted(const std::vector<float>& rank, int begin, int end, int count) {
  std::vector<int32_t> order;
  for (int i = begin; i < end; ++i) order.push_back(i);
  const auto value = [&](int i) { return std::isnan(rank[i]) ? HUGE_VALF : rank[i]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value(a) < value(b); });
  order.resize(count);
  return order;
}

std::vector<int32_t> Selected(const std::vector<float>& rank, int begin, int end, int count) {
  std::vector<int32_t> out(count);
  SelectLowest(rank.data(), begin, end, count, out.data());
  return out;
}

TEST(SelectSlotsTest, EqualsAStableSort) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    const int n = 1 + static_cast<int>(random() % 200);
    std::vector<float> rank(n);
    // Few values, so that many are equal; both zeros; signs; some not finite.
    for (float& x : rank) {
      const float values[] = {0.0f,
                              -0.0f,
                              1.0f,
                              -2.5f,
                              1e-40f,
                              HUGE_VALF,
                              std::numeric_limits<float>::quiet_NaN(),
                              static_cast<float>(random() % 7)};
      x = values[random() % 8];
    }
    const int begin = static_cast<int>(random() % n);
    const int end = begin + 1 + static_cast<int>(random() % (n - begin));
    for (int count : {1, (end - begin + 1) / 2, end - begin}) {
      EXPECT_EQ(Selected(rank, begin, end, count), Sorted(rank, begin, end, count));
    }
  }
}

}  // namespace
}  // namespace keyline::cpu
