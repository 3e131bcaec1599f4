// NCCL between ranks that are threads, each with a GPU of its own. Where the build or the machine
// has no such thing, the answer says so.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>
#include <vector>

#include "kernels/cuda/open_cuda.h"
#include "kernels/device/tensor.h"
#include "runtime/transport/communicator.h"
#include "tests/runtime/transport/memory_device.h"

namespace keyline {
namespace {

TEST(NcclCommunicatorTest, NeedsAGpuAndLeavesTheOtherTransportAlone) {
  auto comms = MakeLocalCommunicators(1);
  MemoryDevice device(/*memory_is_host=*/true);
  const absl::Status status = MakeNcclCommunicator(comms[0], device).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnavailable(status)) << status;
  ASSERT_NE(comms[0], nullptr) << "it was taken although there is no NCCL communicator";
  comms[0]->SendBytes(0, {});
  EXPECT_TRUE(comms[0]->HasBytes(0));
}

// Each rank on its own GPU: tensors of many sizes along the line, in stream order, behind each
// other and while the other thread does the same.
TEST(NcclCommunicatorTest, TensorsArriveAsSentBetweenTwoCudaDevices) {
  if (!OpenCudaDevice(1).ok()) GTEST_SKIP() << OpenCudaDevice(1).status();
  SetNcclEnvironment("");
  auto locals = MakeLocalCommunicators(2);
  const auto play = [&](int rank) {
    auto device = OpenCudaDevice(rank);
    ASSERT_TRUE(device.ok()) << device.status();
    auto comm = MakeNcclCommunicator(locals[rank], **device);
    ASSERT_TRUE(comm.ok()) << comm.status();
    EXPECT_EQ((*comm)->rank(), rank);
    EXPECT_EQ((*comm)->size(), 2);
    auto stream = (*device)->NewStream();
    stream->WhileWaiting([&] { (*comm)->Progress(); });
    for (const int64_t n : {1, 1000, 1 << 20, 3}) {
      Tensor tensor = *Tensor::Allocate(**device, DType::kI32, {n});
      std::vector<int32_t> numbers(n);
      for (int round = 0; round < 4; ++round) {
        std::iota(numbers.begin(), numbers.end(), 100 * round);
        if (rank == 0) {
          stream->CopyAsync(tensor.view().data, numbers.data(), tensor.bytes());
          (*comm)->Send(1, tensor, *stream);
          stream->ZeroAsync(tensor.view().data, tensor.bytes());  // later work of the stream
          stream->Synchronize();
        } else {
          std::vector<int32_t> got(n);
          ASSERT_EQ((*comm)->Recv(0, tensor, *stream, absl::Seconds(10)), absl::OkStatus());
          stream->CopyAsync(got.data(), tensor.view().data, tensor.bytes());
          stream->Synchronize();
          EXPECT_EQ(got, numbers) << n << " numbers, round " << round;
        }
      }
    }
    stream->WhileWaiting(nullptr);
  };
  std::thread other([&] { play(1); });
  play(0);
  other.join();
}

}  // namespace
}  // namespace keyline
