#include "kernels/ops/probe.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/device/host_block.h"
#include "kernels/device/status_macros.h"
#include "kernels/ops/op_table.h"

namespace keyline {
namespace {

constexpr size_t kHostBytes = size_t{256} << 20;
constexpr size_t kDeviceBytes = size_t{1} << 30;
constexpr size_t kPageBytes = 4096;                // a read is a multiple of this
constexpr size_t kWindowBytes = size_t{64} << 20;  // small reads are timed so many at once
constexpr size_t kMostReads = 64;
constexpr int kHostPasses = 6;
constexpr int kDevicePasses = 21;
constexpr int kBusyReads = 8;  // some 2 ms on a fast GPU: more than a few hundred launches take

}  // namespace

DeviceProbe::DeviceProbe(Device& device)
    : device_(&device),
      stream_(device.NewStream()),
      begin_(device.NewTimer()),
      end_(device.NewTimer()) {}

absl::StatusOr<std::unique_ptr<DeviceProbe>> DeviceProbe::Make(Device& device) {
  std::unique_ptr<DeviceProbe> probe(new DeviceProbe(device));
  const size_t bytes = device.memory_is_host() ? kHostBytes : kDeviceBytes;
  ASSIGN_OR_RETURN(probe->memory_,
                   Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(bytes)}));
  // Untouched host pages are all one page of zeros, and zeros cost a GPU less power than numbers.
  std::vector<uint32_t> noise(size_t{1} << 20);
  std::minstd_rand random(1);
  for (uint32_t& word : noise) word = static_cast<uint32_t>(random());
  const size_t piece = noise.size() * sizeof(uint32_t);
  auto* to = probe->memory_.view().as<std::byte>();
  for (size_t at = 0; at < bytes; at += piece) {
    probe->stream_->CopyAsync(to + at, noise.data(), piece);
  }
  probe->stream_->Synchronize();
  return probe;
}

double DeviceProbe::ReadOnce(size_t bytes) {
  const auto* memory = memory_.view().as<std::byte>();
  const int reads = static_cast<int>(std::clamp<size_t>(kWindowBytes / bytes, 1, kMostReads));
  const double seconds = Seconds(*stream_, [&] {
    for (int i = 0; i < reads; ++i) {
      if (next_ + bytes > memory_.bytes()) next_ = 0;
      device_->ops().read_memory(*stream_, memory + next_, bytes);
      next_ += bytes;
    }
  });
  return static_cast<double>(bytes) * reads / seconds;
}

double DeviceProbe::ReadBandwidth(size_t bytes) {
  bytes = bytes == 0 ? memory_.bytes()
                     : std::clamp(bytes / kPageBytes * kPageBytes, kPageBytes, memory_.bytes());
  ReadOnce(bytes);
  std::vector<double> rates;
  const bool host = device_->memory_is_host();
  for (int i = 0; i < (host ? kHostPasses : kDevicePasses); ++i) rates.push_back(ReadOnce(bytes));
  std::sort(rates.begin(), rates.end());
  // A host is shared with others: a disturbed pass says nothing of what it can do.
  return host ? rates.back() : rates[rates.size() / 2];
}

double DeviceProbe::MultiplyRate(DType dtype) {
  double best = 0;
  for (int i = 0; i < (device_->memory_is_host() ? kHostPasses : 1); ++i) {
    best = std::max(best, device_->ops().multiply_rate(*stream_, dtype));
  }
  return best;
}

double DeviceProbe::UploadRate() { return device_->ops().upload_rate(*stream_); }

double DeviceProbe::Seconds(Stream& stream, absl::FunctionRef<void()> work) {
  if (!device_->memory_is_host()) {
    for (int i = 0; i < kBusyReads; ++i) {
      device_->ops().read_memory(stream, memory_.view().data, memory_.bytes());
    }
  }
  begin_->Record(stream);
  work();
  end_->Record(stream);
  return end_->SecondsSince(*begin_);
}

absl::StatusOr<double> MeasureLink(Device& device) {
  const size_t bytes = device.memory_is_host() ? kWindowBytes : kHostBytes;
  ASSIGN_OR_RETURN(const HostBlock from, HostBlock::Allocate(device, bytes));
  std::memset(from.data(), 1, bytes);  // untouched pages are all one page of zeros
  ASSIGN_OR_RETURN(const Tensor to,
                   Tensor::Allocate(device, DType::kU8, {static_cast<int64_t>(bytes)}));
  const std::unique_ptr<Stream> stream = device.NewStream();
  const std::unique_ptr<Event> begin = device.NewTimer();
  const std::unique_ptr<Event> end = device.NewTimer();
  double best = 0;
  for (int i = 0; i < kHostPasses; ++i) {
    begin->Record(*stream);
    stream->CopyAsync(to.view().data, from.data(), bytes);
    end->Record(*stream);
    best = std::max(best, static_cast<double>(bytes) / end->SecondsSince(*begin));
  }
  return best;
}

}  // namespace keyline
