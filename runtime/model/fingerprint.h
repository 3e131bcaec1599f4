// Which model this is, for states that only the same model can go on with (saved sessions).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "kernels/device/dtype.h"
#include "runtime/files/weight_source.h"
#include "runtime/model/decoder_model.h"
#include "runtime/weights/weight_storage.h"

namespace keyline {

// Family, shape, number format, storage of weights unless plain, and a checksum of the
// configuration and of two rows of every weight that a layer reads: models that were trained apart
// differ in all of them. Reads a few MiB.
absl::StatusOr<std::string> ModelFingerprint(const DecoderModel& model, const WeightSource& source,
                                             DType dtype, WeightStorage storage);

}  // namespace keyline
