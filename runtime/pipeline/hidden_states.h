// HiddenStates: what becomes of the hidden states that a plan asks for (OUTPUT_HIDDEN): rows of the
// residual stream are read where the asked layer starts, and pooled over their sequence on the
// host.
//
// A mean adds in double, token after token in the order of positions, across chunks and pieces: the
// same bits however the prompt is cut and whatever rank the layer is on. Thread: the rank's own.
#pragma once

#include <map>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/tensor.h"
#include "runtime/pipeline/step_plan.pb.h"

namespace keyline {

class HiddenStates {
 public:
  // Whether a chunk of the batch asks for any state.
  static bool Asks(const pipeline::PlanBatch& batch);
  // Whether a chunk of the batch asks for the state at the start of `layer` (the number of layers:
  // after the last norm).
  static bool Asks(const pipeline::PlanBatch& batch, int layer);

  // Reads the rows of the chunks that ask for `layer` and adds to `result` what is due. Waits for
  // the stream if there are any. hidden: [tokens, hidden], of the whole batch.
  void Read(Stream& s, const pipeline::PlanBatch& batch, int layer, TensorView hidden,
            pipeline::StepResult& result);

 private:
  struct Sum {
    int64_t tokens = 0;
    std::vector<double> values;  // [hidden]
  };

  std::map<int, Sum> sums_;  // of lanes whose mean is not due yet
};

}  // namespace keyline
