// The cache policies and storages that exist, by name. Thread: any; constant.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"
#include "kernels/ops/cache_memory.h"
#include "runtime/cache/policies/eviction_policy.h"

namespace keyline {

// A storage: in which formats K and V are kept.
struct StorageFormats {
  KvFormat k = KvFormat::kF32;
  KvFormat v = KvFormat::kF32;
};

std::vector<std::string> CachePolicyNames();
std::vector<std::string> CacheStorageNames();

// INVALID_ARGUMENT lists the names that exist.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(const std::string& name);

// `plain`: element type of the plain storage: f32, bf16 or f16.
absl::StatusOr<StorageFormats> FormatsOf(const std::string& storage, DType plain);

}  // namespace keyline
