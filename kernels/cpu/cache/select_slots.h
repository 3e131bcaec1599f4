// Chooses the slots of lowest rank: what a full cache forgets.
#pragma once

#include <cstdint>

namespace keyline::cpu {

// The `count` indexes i of [begin, end) with the lowest rank[i], ascending by (rank, index); NaN
// ranks as infinity. REQUIRES: 1 <= count <= end - begin.
void SelectLowest(const float* rank, int begin, int end, int count, int32_t* out);

}  // namespace keyline::cpu
