// StreamedStore: some layers of a stage stay on the device, the others stream through a few slots
// of it, one after the other, while the layers before them run. A model larger than the device.
//
// Layers stream in the order in which a stage runs them, round and round: the copies run ahead as
// far as there are slots, across the end of a step, too, and nothing on the host waits for them.
// Each streamed layer has one copy, packed, in pinned host memory. Those that `host_bytes` has no
// room for are packed anew from the checkpoint each time, on the calling thread; that is slow, but
// it runs. Copies are made on a stream of their own: a slot is filled once the work that read its
// last layer is done, and read once it is filled. Thread: the stage's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/device/host_block.h"
#include "runtime/files/weight_source.h"
#include "runtime/weights/layer_blob.h"
#include "runtime/weights/layer_store.h"

namespace keyline {

class StreamedStore : public LayerStore {
 public:
  struct Options {
    std::vector<bool> streamed;    // one a layer of the stage
    int slots = 2;                 // at least 2, or each layer's copy waits for the layer before
    size_t host_bytes = SIZE_MAX;  // most pinned memory that packed layers take
  };
  // specs[i] is layer first_layer + i. `progress` (may be null) hears the bytes of each layer done.
  // `source` must outlive the store.
  static absl::StatusOr<std::unique_ptr<StreamedStore>> Load(
      Device& device, Stream& stream, const WeightSource& source, int first_layer,
      const std::vector<LayerSpec>& specs, DType dtype, const Options& options,
      const std::function<void(size_t bytes)>& progress);
  ~StreamedStore() override;

  // REQUIRES: layers are acquired in ascending order, again from the first one after the last, one
  // at a time.
  LayerWeights Acquire(Stream& stream, int layer) override;
  void Release(Stream& stream, int layer) override;
  size_t device_bytes() const override;
  int64_t streamed_bytes() const override { return streamed_bytes_; }
  int unpinned_layers() const override;

 private:
  struct Slot {
    Tensor memory;
    std::unique_ptr<Event> filled;
    std::unique_ptr<Event> freed;
    bool used = false;  // `freed` has been recorded
  };
  struct Streamed {
    LayerSpec spec;
    size_t bytes = 0;
    HostBlock packed;               // empty: packed anew each time
    std::vector<LayerViews> views;  // one a slot
  };
  struct Staging {
    HostBlock memory;
    std::unique_ptr<Event> copied;
  };
  // Starts the copies that there are slots for.
  void Prefetch();
  const std::byte* Packed(Streamed& layer);

  StreamedStore() = default;
  Device* device_ = nullptr;
  const WeightSource* source_ = nullptr;
  DType dtype_ = DType::kF32;
  int first_layer_ = 0;
  std::vector<LayerBlob> resident_;  // one a layer, empty where it streams
  std::vector<int> streamed_index_;  // one a layer, -1 where it is resident
  std::vector<Streamed> streamed_;   // in the order of the layers
  std::vector<Slot> slots_;
  std::vector<Staging> staging_;  // in turn; none where all layers are pinned
  std::unique_ptr<Stream> copies_;
  uint64_t started_ = 0;   // copies, ever; the n-th goes to slot n % slots
  uint64_t released_ = 0;  // layers whose slot is free again, ever
  uint64_t unpinned_copies_ = 0;
  int64_t streamed_bytes_ = 0;
};

}  // namespace keyline
