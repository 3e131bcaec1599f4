#include "runtime/cache/cache_registry.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace keyline {
namespace {

struct PolicyEntry {
  const char* name;
  std::unique_ptr<EvictionPolicy> (*make)(std::string name);
};

constexpr PolicyEntry kPolicies[] = {
    {"dense", MakeDense},
    {"last_recent", MakeLastRecent},
    {"protected_last_recent", MakeProtectedLastRecent},
    {"h2o", MakeH2o},
    {"h2o_vnorm", MakeH2oVnorm},
    {"qh2o", MakeQh2o},
    {"qh2o_vnorm", MakeQh2oVnorm},
    {"h2o_original", MakeH2oOriginal},
};

struct StorageEntry {
  const char* name;
  StorageFormats (*formats)(KvFormat plain);
};

constexpr StorageEntry kStorages[] = {
    {"plain",
     [](KvFormat plain) {
       return StorageFormats{plain, plain};
     }},
    {"int8",
     [](KvFormat) {
       return StorageFormats{KvFormat::kInt8, KvFormat::kInt8};
     }},
    {"int4",
     [](KvFormat) {
       return StorageFormats{KvFormat::kInt4, KvFormat::kInt4};
     }},
    // Keys are the sensitive ones.
    {"k8v4",
     [](KvFormat) {
       return StorageFormats{KvFormat::kInt8, KvFormat::kInt4};
     }},
};

template <class Entries>
std::vector<std::string> NamesOf(const Entries& entries) {
  std::vector<std::string> names;
  for (const auto& entry : entries) names.emplace_back(entry.name);
  return names;
}

}  // namespace

std::vector<std::string> CachePolicyNames() { return NamesOf(kPolicies); }
std::vector<std::string> CacheStorageNames() { return NamesOf(kStorages); }

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakePolicy(const std::string& name) {
  for (const PolicyEntry& entry : kPolicies) {
    if (name == entry.name) return entry.make(name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cache policy '", name,
                   "' does not exist; known: ", absl::StrJoin(CachePolicyNames(), ", ")));
}

absl::StatusOr<StorageFormats> FormatsOf(const std::string& storage, DType plain) {
  if (!IsFloat(plain)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a plain cache holds f32, bf16 or f16, not ", std::string(Name(plain))));
  }
  const KvFormat format = plain == DType::kF32    ? KvFormat::kF32
                          : plain == DType::kBF16 ? KvFormat::kBF16
                                                  : KvFormat::kF16;
  for (const StorageEntry& entry : kStorages) {
    if (storage == entry.name) return entry.formats(format);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("cache storage '", storage,
                   "' does not exist; known: ", absl::StrJoin(CacheStorageNames(), ", ")));
}

}  // namespace keyline
