// Watchdog: the thread that ends this process when one of its ranks is overdue (a peer or a GPU
// hangs, and the rank's own thread with it), and that says where the ranks were when mpirun ends
// the job, which it does with SIGTERM as soon as any rank has died.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/transport/rank_state.h"

namespace keyline {

class Watchdog {
 public:
  // `takes_sigterm`: SIGTERM, which all threads must have blocked (BlockSigterm), ends the process
  // here, with a line for each rank. REQUIRES: at least one state.
  Watchdog(std::vector<std::shared_ptr<RankState>> states, bool takes_sigterm);
  ~Watchdog();

  // In the calling thread and those that it makes later.
  static void BlockSigterm();

 private:
  void Watch();
  // Until it is time to look again. False once the watchdog's life is over.
  bool Wait();

  const std::vector<std::shared_ptr<RankState>> states_;
  const bool takes_sigterm_;
  std::mutex mutex_;
  std::condition_variable ended_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace keyline
