#include "kernels/cuda/cuda_device.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/matmul/cublas_lt.h"
#include "kernels/cuda/matmul/gemm_plans.h"
#include "kernels/cuda/open_cuda.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/op_table.h"

namespace keyline {
namespace cuda {
namespace {

size_t StreamScratch(const PassShape& shape) {
  return std::max({MatMulScratch(shape), AttentionScratch(shape), PlaceScratch(shape)});
}

size_t ScratchBytes(const PassShape& shape) {
  return StreamScratch(shape) + GemmPlans::BytesFor(TrialBytes(shape));
}

absl::Status ReserveScratch(Stream& s, const PassShape& shape) {
  auto& stream = static_cast<CudaStream&>(s);
  RETURN_IF_ERROR(stream.ReserveScratch(StreamScratch(shape)));
  return stream.gemm_plans().Reserve(TrialBytes(shape));
}

constexpr OpTable kCudaOps = {
    .packed_bytes = PackedBytes,
    .pack_rows = PackRows,
    .pack_blocks = PackBlocks,
    .embed = Embed,
    .norm = Norm,
    .matmul = MatMul,
    .matmul_add = MatMulAdd,
    .norm_matmul = NormMatMul,
    .norm_gated_matmul = NormGatedMatMul,
    .gather_rows = GatherRows,
    .sample = Sample,
    .token_log_probs = TokenLogProbs,
    .top_log_probs = TopLogProbs,
    .clear_lane = ClearLane,
    .place_in_ring = PlaceInRing,
    .place_by_score = PlaceByScore,
    .move_slots = MoveSlots,
    .rotate_and_write = RotateAndWrite,
    .attention = Attention,
    .place_decode = PlaceDecode,
    .attend_decode = AttendDecode,
    .add_scores = AddScores,
    .advance_lanes = AdvanceLanes,
    .pack_lane = PackLane,
    .unpack_lane = UnpackLane,
    .scratch_bytes = ScratchBytes,
    .reserve_scratch = ReserveScratch,
    .read_memory = ReadMemory,
    .multiply_rate = MultiplyRate,
    .upload_rate = UploadRate,
};
// What the runtime takes out of pageable memory without waiting for the stream.
constexpr size_t kStagedAtOnce = 64 << 10;

// What a query answered.
bool IsDone(cudaError_t code) {
  if (code == cudaSuccess) return true;
  if (code != cudaErrorNotReady) CUDA_CHECK(code);
  cudaGetLastError();  // not ready is no error; the next check must not see it
  return false;
}

bool IsPageable(const void* memory) {
  cudaPointerAttributes attributes;
  CUDA_CHECK(cudaPointerGetAttributes(&attributes, memory));
  return attributes.type == cudaMemoryTypeUnregistered;
}

}  // namespace

CurrentDevice::CurrentDevice(int index) {
  CUDA_CHECK(cudaGetDevice(&previous_));
  if (previous_ != index) CUDA_CHECK(cudaSetDevice(index));
}

CurrentDevice::~CurrentDevice() { CUDA_CHECK(cudaSetDevice(previous_)); }

CudaStream::CudaStream(Device& device, int index, bool deterministic)
    : Stream(device), index_(index), deterministic_(deterministic) {
  const CurrentDevice current(index);
  // Non-blocking: not ordered against the default stream, which nobody here works on.
  CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, index));
  int shared = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index));
  shared_of_block_ = shared;
  int major = 0, minor = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  runs_sm90_code_ = CodeVersion() >= 90;
  is_hopper_ = major == 9 && minor == 0;
}

CudaStream::~CudaStream() {
  const CurrentDevice current(index_);
  ForgetGraphs();
  gemm_plans_.reset();
  device().Free(scratch_);
  if (side_ != nullptr) {
    CUDA_CHECK(cudaEventDestroy(forked_));
    CUDA_CHECK(cudaEventDestroy(joined_));
    CUDA_CHECK(cudaStreamDestroy(side_));
  }
  CUDA_CHECK(cudaStreamDestroy(stream_));
}

cudaStream_t CudaStream::Beside() {
  Join();
  MakeDeviceCurrent();
  if (side_ == nullptr) {
    CUDA_CHECK(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming));
    CUDA_CHECK(cudaEventCreateWithFlags(&joined_, cudaEventDisableTiming));
  }
  CUDA_CHECK(cudaEventRecord(forked_, stream_));
  CUDA_CHECK(cudaStreamWaitEvent(side_, forked_, 0));
  works_beside_ = true;
  return side_;
}

void CudaStream::Join() {
  if (!std::exchange(works_beside_, false)) return;
  CUDA_CHECK(cudaEventRecord(joined_, side_));
  CUDA_CHECK(cudaStreamWaitEvent(stream_, joined_, 0));
}

absl::Status CudaStream::ReserveScratch(size_t bytes) {
  if (bytes <= scratch_bytes_) return absl::OkStatus();
  const CurrentDevice current(index_);
  ForgetGraphs();  // they hold the old address
  device().Free(std::exchange(scratch_, nullptr));
  scratch_bytes_ = 0;
  ASSIGN_OR_RETURN(scratch_, device().Allocate(bytes));
  scratch_bytes_ = bytes;
  return absl::OkStatus();
}

void* CudaStream::Scratch(size_t bytes) {
  Join();
  const absl::Status reserved = ReserveScratch(bytes);
  CHECK(reserved.ok()) << reserved;
  return scratch_;
}

void* CudaStream::ScratchInTurn(size_t bytes) {
  const absl::Status reserved = ReserveScratch(BytesInTurn(bytes));
  CHECK(reserved.ok()) << reserved;
  second_half_ = !second_half_;
  return static_cast<std::byte*>(scratch_) +
         (second_half_ ? scratch_bytes_ / 2 / kScratchAlignment * kScratchAlignment : 0);
}

GemmPlans& CudaStream::gemm_plans() {
  if (gemm_plans_ == nullptr) {
    const CurrentDevice current(index_);
    gemm_plans_ = std::make_unique<GemmPlans>(device());
  }
  return *gemm_plans_;
}

void CudaStream::CopyAsync(void* to, const void* from, size_t bytes) {
  // Into pageable memory the runtime copies only once the stream has got there, and out of it,
  // where it has much to stage, it may; both by waiting where no message moves on. So this waits
  // first.
  if (bytes == 0) return;
  if (IsPageable(to) || (bytes > kStagedAtOnce && IsPageable(from))) Synchronize();
  CopyPinnedAsync(to, from, bytes);
}

void CudaStream::CopyPinnedAsync(void* to, const void* from, size_t bytes) {
  if (bytes == 0) return;
  Join();
  CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_));
}

void CudaStream::ZeroAsync(void* to, size_t bytes) {
  Join();
  CUDA_CHECK(cudaMemsetAsync(to, 0, bytes, stream_));
}

void CudaStream::Synchronize() {
  Join();
  PollUntil([this] { return IsDone(cudaStreamQuery(stream_)); });
}

void CudaStream::MakeDeviceCurrent() const {
  int current = -1;
  CUDA_CHECK(cudaGetDevice(&current));
  if (current != index_) CUDA_CHECK(cudaSetDevice(index_));
}

void CudaStream::Replay(uint64_t key, absl::FunctionRef<void()> enqueue) {
  constexpr size_t kMostGraphs = 512;
  MakeDeviceCurrent();
  Join();
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) {
    // The first time scratch memory grows and products choose their algorithms.
    if (graphs_.size() >= kMostGraphs) ForgetGraphs();
    graphs_.emplace(key, nullptr);
    return enqueue();
  }
  if (found->second == nullptr) {
    cudaGraph_t graph = nullptr;
    CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    enqueue();
    Join();
    CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    CUDA_CHECK(cudaGraphInstantiate(&found->second, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
  }
  CUDA_CHECK(cudaGraphLaunch(found->second, stream_));
}

void CudaStream::ForgetGraphs() {
  Synchronize();
  for (const auto& [key, graph] : graphs_) {
    if (graph != nullptr) CUDA_CHECK(cudaGraphExecDestroy(graph));
  }
  graphs_.clear();
}

CudaEvent::CudaEvent(int index, bool timer) {
  const CurrentDevice current(index);
  CUDA_CHECK(cudaEventCreateWithFlags(
      &event_, cudaEventBlockingSync | (timer ? 0 : cudaEventDisableTiming)));
}

CudaEvent::~CudaEvent() { CUDA_CHECK(cudaEventDestroy(event_)); }

void CudaEvent::Record(Stream& stream) {
  Join(stream);
  CUDA_CHECK(cudaEventRecord(event_, Native(stream)));
  reached_ = false;
}

void CudaEvent::BlockStream(Stream& stream) {
  CUDA_CHECK(cudaStreamWaitEvent(Native(stream), event_, 0));
}

void CudaEvent::Synchronize() {
  if (!reached_) CUDA_CHECK(cudaEventSynchronize(event_));
  reached_ = true;
}

bool CudaEvent::Reached() {
  reached_ = reached_ || IsDone(cudaEventQuery(event_));
  return reached_;
}

double CudaEvent::SecondsSince(const Event& earlier) {
  Synchronize();
  float milliseconds = 0;
  CUDA_CHECK(
      cudaEventElapsedTime(&milliseconds, static_cast<const CudaEvent&>(earlier).event_, event_));
  return milliseconds * 1e-3;
}

CudaDevice::CudaDevice(int index, bool deterministic)
    : Device(absl::StrCat("cuda:", index), kCudaOps),
      index_(index),
      deterministic_(deterministic) {}

absl::StatusOr<void*> CudaDevice::AllocateMemory(size_t bytes) {
  const CurrentDevice current(index_);
  void* memory = nullptr;
  const cudaError_t code = cudaMalloc(&memory, bytes);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // this error is answered here; the next check must not see it
    return absl::ResourceExhaustedError(absl::StrCat(name(), ": no room for ", bytes, " bytes; ",
                                                     this->memory().free_bytes, " of ",
                                                     this->memory().total_bytes, " are free"));
  }
  CUDA_CHECK(code);
  // Streams are not ordered against this one, so the zeros must be there before the caller goes on.
  CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, cudaStreamPerThread));
  CUDA_CHECK(cudaStreamSynchronize(cudaStreamPerThread));
  return memory;
}

void CudaDevice::FreeMemory(void* memory, size_t /*bytes*/) {
  const CurrentDevice current(index_);
  CUDA_CHECK(cudaFree(memory));
}

absl::StatusOr<void*> CudaDevice::AllocateHost(size_t bytes) {
  const CurrentDevice current(index_);
  void* memory = nullptr;
  // The driver places the pages near the calling thread. Kernels know them by the same address.
  const cudaError_t code = cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // as above
    return absl::ResourceExhaustedError(
        absl::StrCat(name(), ": the host has no room for ", bytes, " bytes of pinned memory"));
  }
  CUDA_CHECK(code);
  return memory;
}

void CudaDevice::FreeHost(void* memory, size_t /*bytes*/) { CUDA_CHECK(cudaFreeHost(memory)); }

std::unique_ptr<Stream> CudaDevice::NewStream() {
  return std::make_unique<CudaStream>(*this, index_, deterministic_);
}

std::unique_ptr<Event> CudaDevice::NewEvent() {
  return std::make_unique<CudaEvent>(index_, /*timer=*/false);
}

std::unique_ptr<Event> CudaDevice::NewTimer() {
  return std::make_unique<CudaEvent>(index_, /*timer=*/true);
}

DeviceMemory CudaDevice::memory() const {
  const CurrentDevice current(index_);
  DeviceMemory memory;
  CUDA_CHECK(cudaMemGetInfo(&memory.free_bytes, &memory.total_bytes));
  return memory;
}

std::string CudaDevice::description() const {
  cudaDeviceProp properties;
  CUDA_CHECK(cudaGetDeviceProperties(&properties, index_));
  return properties.name;
}

DType CudaDevice::ActivationType(DType weights) const {
  return IsFloat(weights) ? weights : DType::kBF16;
}

}  // namespace cuda

absl::StatusOr<std::unique_ptr<Device>> OpenCudaDevice(int index, bool deterministic) {
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    cudaGetLastError();
    // No driver, a driver older than the toolkit, or no device.
    return absl::UnavailableError(
        absl::StrCat("cuda:", index, ": ", cudaGetErrorString(code), "; use cpu"));
  }
  if (index < 0 || index >= count) {
    return absl::UnavailableError(
        absl::StrCat("cuda:", index, ": this machine has cuda:0 to cuda:", count - 1, " alone"));
  }
  // This thread works on it from now on; see Native() for threads that work on several.
  CUDA_CHECK(cudaSetDevice(index));
  if (const auto cublas = cuda::OpenCublasLt(); !cublas.ok()) return cublas.status();
  return std::make_unique<cuda::CudaDevice>(index, deterministic);
}

}  // namespace keyline
