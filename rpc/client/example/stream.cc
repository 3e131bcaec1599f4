// stream ADDRESS PROMPT: continues a text, printing it as it is made.
#include <keyline/client.h>

#include <cstdio>
#include <memory>

#include "absl/time/clock.h"
#include "absl/time/time.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: stream ADDRESS PROMPT\n");
    return 2;
  }
  absl::StatusOr<std::unique_ptr<keyline::Client>> client = keyline::Client::Connect(argv[1]);
  absl::Status status = client.status();
  if (status.ok()) status = (*client)->WaitUntilReady(absl::Now() + absl::Seconds(10));
  if (status.ok()) {
    keyline::v1::GenerateRequest request;
    request.mutable_prompt()->set_text(argv[2]);
    request.mutable_stopping()->set_max_new_tokens(64);
    status = (*client)->GenerateStream(request,
                                       [](const keyline::v1::GenerateEvent& event) {
                                         if (event.has_delta()) {
                                           std::fputs(event.delta().text().c_str(), stdout);
                                           std::fflush(stdout);
                                         }
                                         if (event.has_finish()) {
                                           std::fprintf(stderr, "\n%u tokens\n",
                                                        event.finish().usage().new_tokens());
                                         }
                                         return true;
                                       },
                                       {.deadline = absl::Now() + absl::Minutes(5)});
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
