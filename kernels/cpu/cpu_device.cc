#include "kernels/cpu/cpu_device.h"

#include <glog/logging.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/cpu/cache/cache_ops_cpu.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul/weight_layout.h"
#include "kernels/cpu/open_cpu.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/op_table.h"

namespace keyline {
namespace {

constexpr size_t kAlignment = 256;

size_t ScratchBytes(const PassShape& shape) {
  return std::max(
      {cpu::MatMulScratch(shape), cpu::AttentionScratch(shape), cpu::SampleScratch(shape)});
}

absl::Status ReserveScratch(Stream& s, const PassShape& shape) {
  return static_cast<CpuStream&>(s).ReserveScratch(ScratchBytes(shape));
}

constexpr OpTable kCpuOps = {
    .packed_bytes = cpu::PackedBytes,
    .pack_rows = cpu::PackRows,
    .pack_blocks = cpu::PackBlocks,
    .embed = cpu::Embed,
    .norm = cpu::Norm,
    .matmul = cpu::MatMul,
    .matmul_add = cpu::MatMulAdd,
    .norm_matmul = cpu::NormMatMul,
    .norm_gated_matmul = cpu::NormGatedMatMul,
    .gather_rows = cpu::GatherRows,
    .sample = cpu::Sample,
    .token_log_probs = cpu::TokenLogProbs,
    .top_log_probs = cpu::TopLogProbs,
    .clear_lane = cpu::ClearLane,
    .place_in_ring = cpu::PlaceInRing,
    .place_by_score = cpu::PlaceByScore,
    .move_slots = cpu::MoveSlots,
    .rotate_and_write = cpu::RotateAndWrite,
    .attention = cpu::Attention,
    .place_decode = nullptr,  // nothing to gain: the parts are calls of functions
    .attend_decode = nullptr,
    .add_scores = cpu::AddScores,
    .advance_lanes = cpu::AdvanceLanes,
    .pack_lane = cpu::PackLane,
    .unpack_lane = cpu::UnpackLane,
    .scratch_bytes = ScratchBytes,
    .reserve_scratch = ReserveScratch,
    .read_memory = cpu::ReadMemory,
    .multiply_rate = cpu::MultiplyRate,
    .upload_rate = cpu::UploadRate,
};

size_t RoundUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Nothing is enqueued, so every mark has been reached.
class CpuEvent final : public Event {
 public:
  void Record(Stream&) override { reached_ = std::chrono::steady_clock::now(); }
  void BlockStream(Stream&) override {}
  void Synchronize() override {}
  bool Reached() override { return true; }
  double SecondsSince(const Event& earlier) override {
    const auto& mark = static_cast<const CpuEvent&>(earlier);
    return std::chrono::duration<double>(reached_ - mark.reached_).count();
  }

 private:
  std::chrono::steady_clock::time_point reached_;
};

}  // namespace

CpuDevice::CpuDevice(int threads, const KernelSet& kernels)
    : Device("cpu", kCpuOps), pool_(threads), kernels_(&kernels) {}

absl::StatusOr<void*> CpuDevice::AllocateMemory(size_t bytes) {
  void* memory = nullptr;
  if (bytes < HugePages::kLeastBytes) {
    const size_t size = RoundUp(std::max<size_t>(bytes, 1), kAlignment);
    memory = std::aligned_alloc(kAlignment, size);
    if (memory != nullptr) std::memset(memory, 0, size);
  } else if (bytes <=
             this->memory().free_bytes) {  // a mapping alone would succeed, its use would not
    memory = huge_pages_.Allocate(bytes);
  }
  if (memory == nullptr) {
    const DeviceMemory now = this->memory();
    return absl::ResourceExhaustedError(absl::StrCat("cpu: no room for ", bytes,
                                                     " bytes: ", now.free_bytes, " of ",
                                                     now.total_bytes, " bytes are free"));
  }
  return memory;
}

void CpuDevice::FreeMemory(void* memory, size_t bytes) {
  if (bytes < HugePages::kLeastBytes) {
    std::free(memory);
  } else {
    huge_pages_.Free(memory, bytes);
  }
}

std::unique_ptr<Stream> CpuDevice::NewStream() { return std::make_unique<CpuStream>(*this); }

std::unique_ptr<Event> CpuDevice::NewEvent() { return std::make_unique<CpuEvent>(); }

DeviceMemory CpuDevice::memory() const {
  DeviceMemory memory;
  std::ifstream info("/proc/meminfo");
  std::string key, unit;
  size_t kibibytes = 0;
  while (info >> key >> kibibytes) {
    std::getline(info, unit);
    if (key == "MemTotal:") memory.total_bytes = kibibytes << 10;
    if (key == "MemAvailable:") memory.free_bytes = kibibytes << 10;
  }
  return memory;
}

std::string CpuDevice::description() const {
  const int threads = pool_.threads();
  return absl::StrCat("cpu (", kernels_->title, ", ", threads,
                      threads == 1 ? " thread" : " threads", ")");
}

CpuStream::~CpuStream() { device_->Free(scratch_); }

void CpuStream::CopyAsync(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

void CpuStream::ZeroAsync(void* to, size_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

absl::Status CpuStream::ReserveScratch(size_t bytes) {
  if (bytes <= scratch_bytes_) return absl::OkStatus();
  device_->Free(std::exchange(scratch_, nullptr));
  scratch_bytes_ = 0;
  ASSIGN_OR_RETURN(scratch_, device_->Allocate(bytes));
  scratch_bytes_ = bytes;
  return absl::OkStatus();
}

void* CpuStream::Scratch(size_t bytes) {
  const absl::Status reserved = ReserveScratch(bytes);
  CHECK(reserved.ok()) << reserved;
  return scratch_;
}

absl::StatusOr<std::unique_ptr<Device>> OpenCpuDevice(int threads, std::string_view isa) {
  if (threads < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads: ", threads, " is negative; 0 means one for each core"));
  }
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::string> names;
  for (const KernelSet* const* set = KernelSets(); *set != nullptr; ++set) {
    if (isa.empty() || isa == (*set)->name) return std::make_unique<CpuDevice>(threads, **set);
    names.emplace_back((*set)->name);
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "instruction set \"", std::string(isa), "\": this machine has ", absl::StrJoin(names, ", ")));
}

}  // namespace keyline
