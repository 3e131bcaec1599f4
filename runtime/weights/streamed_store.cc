#include "runtime/weights/streamed_store.h"

#include <glog/logging.h>

#include <algorithm>
#include <utility>

#include "kernels/device/status_macros.h"

namespace keyline {
namespace {

constexpr int kStagings = 2;  // one is packed while the other is copied

}  // namespace

absl::StatusOr<std::unique_ptr<StreamedStore>> StreamedStore::Load(
    Device& device, Stream& stream, const WeightSource& source, int first_layer,
    const std::vector<LayerSpec>& specs, DType dtype, const Options& options,
    const std::function<void(size_t bytes)>& progress) {
  CHECK_EQ(options.streamed.size(), specs.size());
  CHECK_GE(options.slots, 2);
  std::unique_ptr<StreamedStore> store(new StreamedStore);
  store->device_ = &device;
  store->source_ = &source;
  store->dtype_ = dtype;
  store->first_layer_ = first_layer;
  size_t slot_bytes = 0;
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!options.streamed[i]) continue;
    slot_bytes = std::max(slot_bytes, LayOut(device, specs[i], dtype).bytes);
  }
  if (slot_bytes > 0) {
    store->copies_ = device.NewStream();
    for (int i = 0; i < options.slots; ++i) {
      Slot& slot = store->slots_.emplace_back();
      ASSIGN_OR_RETURN(slot.memory,
                       Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(slot_bytes)}));
      slot.filled = device.NewEvent();
      slot.freed = device.NewEvent();
    }
  }
  size_t host_left = options.host_bytes;
  for (size_t i = 0; i < specs.size(); ++i) {
    LayerBlob& resident = store->resident_.emplace_back();
    store->streamed_index_.push_back(-1);
    const size_t bytes = LayOut(device, specs[i], dtype).bytes;
    if (!options.streamed[i]) {
      ASSIGN_OR_RETURN(resident, LayerBlob::Load(device, stream, source, specs[i], dtype));
    } else {
      store->streamed_index_[i] = static_cast<int>(store->streamed_.size());
      Streamed& layer = store->streamed_.emplace_back();
      layer.spec = specs[i];
      layer.bytes = bytes;
      for (const Slot& slot : store->slots_) {
        layer.views.emplace_back(device, specs[i], dtype, slot.memory.view().as<std::byte>());
      }
      if (bytes <= host_left) {
        absl::StatusOr<HostBlock> packed = HostBlock::Allocate(device, bytes);
        host_left = packed.ok() ? host_left - bytes : 0;
        if (packed.ok()) layer.packed = *std::move(packed);
      }
      if (layer.packed.data() == nullptr && store->staging_.empty()) {
        for (int s = 0; s < kStagings; ++s) {
          Staging& staging = store->staging_.emplace_back();
          ASSIGN_OR_RETURN(staging.memory, HostBlock::Allocate(device, slot_bytes));
          staging.copied = device.NewEvent();
        }
      }
      // Where it will be packed anew this finds what is wrong with it.
      std::byte* const to =
          layer.packed.data() != nullptr ? layer.packed.data() : store->staging_[0].memory.data();
      RETURN_IF_ERROR(PackLayer(device, source, specs[i], dtype, to));
    }
    if (progress) progress(bytes);
  }
  store->Prefetch();
  return store;
}

StreamedStore::~StreamedStore() {
  if (copies_ != nullptr) copies_->Synchronize();
}

const std::byte* StreamedStore::Packed(Streamed& layer) {
  if (layer.packed.data() != nullptr) return layer.packed.data();
  Staging& staging = staging_[unpinned_copies_++ % kStagings];
  if (unpinned_copies_ > kStagings) staging.copied->Synchronize();
  const absl::Status packed =
      PackLayer(*device_, *source_, layer.spec, dtype_, staging.memory.data());
  CHECK(packed.ok()) << packed;  // it was when the store was loaded
  return staging.memory.data();
}

void StreamedStore::Prefetch() {
  if (streamed_.empty()) return;
  while (started_ < released_ + slots_.size()) {
    Streamed& layer = streamed_[started_ % streamed_.size()];
    Slot& slot = slots_[started_ % slots_.size()];
    const std::byte* const from = Packed(layer);
    if (slot.used) slot.freed->BlockStream(*copies_);
    copies_->CopyPinnedAsync(slot.memory.view().data, from, layer.bytes);
    slot.filled->Record(*copies_);
    if (layer.packed.data() == nullptr) {
      staging_[(unpinned_copies_ - 1) % kStagings].copied->Record(*copies_);
    }
    streamed_bytes_ += static_cast<int64_t>(layer.bytes);
    ++started_;
  }
}

LayerWeights StreamedStore::Acquire(Stream& stream, int layer) {
  const int index = streamed_index_.at(layer - first_layer_);
  if (index < 0) return resident_[layer - first_layer_].weights();
  CHECK_EQ(released_ % streamed_.size(), static_cast<size_t>(index))
      << "layer " << layer << " is not the next one to stream";
  const size_t slot = released_ % slots_.size();
  slots_[slot].filled->BlockStream(stream);
  return streamed_[index].views[slot].weights();
}

void StreamedStore::Release(Stream& stream, int layer) {
  if (streamed_index_.at(layer - first_layer_) < 0) return;
  Slot& slot = slots_[released_ % slots_.size()];
  slot.freed->Record(stream);
  slot.used = true;
  ++released_;
  Prefetch();
}

size_t StreamedStore::device_bytes() const {
  size_t total = 0;
  for (const LayerBlob& layer : resident_) total += layer.device_bytes();
  for (const Slot& slot : slots_) total += slot.memory.bytes();
  return total;
}

int StreamedStore::unpinned_layers() const {
  return static_cast<int>(
      std::count_if(streamed_.begin(), streamed_.end(),
                    [](const Streamed& layer) { return layer.packed.data() == nullptr; }));
}

}  // namespace keyline
