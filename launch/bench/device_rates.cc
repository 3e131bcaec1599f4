// bench device: the denominators themselves.
#include "absl/strings/str_cat.h"
#include "kernels/device/status_macros.h"
#include "launch/bench/bench_run.h"

namespace keyline::bench {

absl::Status DeviceRates(const Run& run) {
  ASSIGN_OR_RETURN(OneDevice one, OpenOneDevice(run));
  run.report.Set("device", one.device->description());
  run.report.Set("ranks", 1);
  run.report.Set("threads", ThreadsOfRank(run.options, 1));
  const auto add = [&](const std::string& name, const char* unit, const auto& measure) {
    std::vector<double> rates;
    for (int i = 0; i < run.args.repeat; ++i) rates.push_back(measure() * 1e-9);
    if (rates[0] == 0) return;  // the device has no such thing
    run.report.Add({.name = name,
                    .value = Median(rates),
                    .unit = unit,
                    .limit = *std::max_element(rates.begin(), rates.end()),
                    .limit_by = absl::StrCat("the best of ", rates.size())});
  };
  for (const int mib : {16, 64, 256}) {
    add(absl::StrCat("read ", mib, " MiB"), "GB/s",
        [&] { return one.probe->ReadBandwidth(static_cast<size_t>(mib) << 20); });
  }
  add("read", "GB/s", [&] { return one.probe->ReadBandwidth(); });
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    add(absl::StrCat("multiply ", std::string(Name(dtype))), "GFLOP/s",
        [&] { return one.probe->MultiplyRate(dtype); });
  }
  add("upload from pinned memory", "GB/s", [&] { return one.probe->UploadRate(); });
  return absl::OkStatus();
}

}  // namespace keyline::bench
