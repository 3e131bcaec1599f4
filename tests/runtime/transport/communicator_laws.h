// What every transport promises, as functions that each rank of a job calls with its communicator.
// Run over threads by local_communicator_test, over processes by mpi_communicator_test.
#pragma once

#include <string>
#include <vector>

#include "runtime/transport/communicator.h"

namespace keyline {

struct CommunicatorLaw {
  const char* name;
  void (*hold)(Communicator& comm);
};

const std::vector<CommunicatorLaw>& CommunicatorLaws();

}  // namespace keyline
