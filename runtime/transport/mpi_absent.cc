// In builds without MPI.
#include "runtime/transport/communicator.h"

namespace keyline {

absl::StatusOr<std::unique_ptr<Communicator>> MakeMpiCommunicator(uint64_t /*epoch*/) {
  return absl::UnavailableError(
      "this build has no MPI: install libopenmpi-dev and openmpi-bin and configure with "
      "-DWITH_MPI=ON, or run ranks as threads of one process (--ranks N)");
}

}  // namespace keyline
