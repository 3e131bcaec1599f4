// SendThread: hands what streams have pending to gRPC, so that the engine's thread need not: a
// write takes gRPC some 20 us, an engine with many lanes makes that many tokens a step. One for all
// streams of a kind; outlives them.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace keyline {

class Sending {
 public:
  virtual ~Sending() = default;
  // Gives gRPC what is next, unless something is on its way. Not on the engine's thread.
  virtual void SendNext() = 0;
};

class SendThread {
 public:
  SendThread() : thread_([this] { Run(); }) {}
  ~SendThread();
  // Any thread; does not wait.
  void Schedule(std::shared_ptr<Sending> stream);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Sending>> scheduled_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace keyline
