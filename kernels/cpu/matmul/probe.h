// What this machine can do at best, measured now: the denominators of every benchmark on the CPU.
//
// Both figures vary with the machine's load, so measure them between the runs of what is compared.
#pragma once

#include <memory>

#include "kernels/cpu/parallel.h"
#include "kernels/device/device.h"
#include "kernels/device/tensor.h"

namespace keyline::cpu {

// Holds 256 MiB of memory to read and threads of its own.
class MachineProbe {
 public:
  explicit MachineProbe(int threads);

  // Bytes a second of one pass over the memory.
  double ReadOnce();
  // Floating point operations a second of the instructions that multiply weights of `dtype` (kF32
  // or kBF16) on this machine, from registers, over about 10 ms.
  double MultiplyOnce(DType dtype);

 private:
  ThreadPool pool_;
  std::unique_ptr<Device> device_;
  Tensor memory_;
};

// The best of a few passes.
double MeasureReadBandwidth(int threads);
double MeasurePeakFlops(DType dtype, int threads);

}  // namespace keyline::cpu
