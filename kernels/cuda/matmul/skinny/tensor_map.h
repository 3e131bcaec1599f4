// Tensor maps: what copies of whole boxes (CopyBox in mma.cuh) are told of a tensor in device
// memory. CUDA Driver API, "Tensor Map Object Management"; the driver's function is found at run
// time, since nothing else here links with it.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace keyline::cuda {

struct TensorDimension {
  uint64_t size;    // elements that there are; what a box has past them is zero
  uint64_t stride;  // bytes: a multiple of 16, but of the first dimension 2; in any order, although
                    // cuda.h writes of the next as so many of the one before
  uint32_t box;     // elements that a copy takes, 256 at most
};

// Of elements of 2 bytes; up to five dimensions, the innermost first, of which a box has 128 bytes.
// In shared memory, from a multiple of kSwizzleAlignment on, row r of these has its chunks of 16
// bytes swapped: chunk c is where c ^ r % 8 would be. data: aligned to 16 bytes. CHECK-fails where
// the driver refuses.
CUtensorMap MakeTensorMap(const void* data, std::initializer_list<TensorDimension> dimensions);

constexpr size_t kSwizzleAlignment = 1024;

}  // namespace keyline::cuda
