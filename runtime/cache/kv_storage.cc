#include "runtime/cache/kv_storage.h"

#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"

namespace keyline {

absl::Status KvStorage::Check(const StorageFormats& formats, int head_dim) {
  const bool int4 = formats.k == KvFormat::kInt4 || formats.v == KvFormat::kInt4;
  if (int4 && head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("4-bit storage needs a head size that is a multiple of 16, not ", head_dim,
                     "; int8 and plain take any"));
  }
  return absl::OkStatus();
}

size_t KvStorage::BytesPerLane(const StorageFormats& formats, int kv_heads, int head_dim,
                               int slots) {
  return size_t(kv_heads) * slots *
         (KvRowBytes(formats.k, head_dim) + KvRowBytes(formats.v, head_dim));
}

absl::StatusOr<KvStorage> KvStorage::Create(Device& device, const StorageFormats& formats,
                                            int lanes, int kv_heads, int head_dim, int slots) {
  RETURN_IF_ERROR(Check(formats, head_dim));
  const int64_t vectors = int64_t{lanes} * kv_heads * slots;
  const auto bytes = [&](KvFormat f) {
    return vectors * static_cast<int64_t>(KvRowBytes(f, head_dim));
  };
  KvStorage storage;
  ASSIGN_OR_RETURN(storage.k_, Tensor::Allocate(device, DType::kU8, {bytes(formats.k)}));
  ASSIGN_OR_RETURN(storage.v_, Tensor::Allocate(device, DType::kU8, {bytes(formats.v)}));
  storage.memory_ = {.k_format = formats.k,
                     .v_format = formats.v,
                     .lanes = lanes,
                     .kv_heads = kv_heads,
                     .head_dim = head_dim,
                     .slots = slots,
                     .k = storage.k_.view().as<std::byte>(),
                     .v = storage.v_.view().as<std::byte>()};
  return storage;
}

}  // namespace keyline
