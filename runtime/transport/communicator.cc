#include "runtime/transport/communicator.h"

#include <cstdlib>

namespace keyline {

bool StartedByMpi() {
  // Set for every rank by Open MPI's mpirun, and by srun --mpi=pmix or prte.
  return std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr;
}

}  // namespace keyline
