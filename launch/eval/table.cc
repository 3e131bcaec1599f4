#include "launch/eval/table.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace keyline {
namespace {

double Mebibytes(size_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

std::string DeltaCell(const Price& price) {
  if (price.tokens == 0) return "";
  std::string cell = absl::StrFormat("%+.4f", price.delta_nll);
  if (price.delta_nll_error.has_value()) {
    absl::StrAppendFormat(&cell, " ± %.4f", *price.delta_nll_error);
  }
  return cell;
}

std::string DivergenceCell(const Price& price) {
  return price.tokens == 0 ? "" : absl::StrFormat("%.4f", price.divergence);
}

nlohmann::json ToJson(const Price& price) {
  nlohmann::json out = {{"tokens", price.tokens}};
  if (price.tokens == 0) return out;
  out["nll"] = price.nll;
  out["perplexity"] = std::exp(price.nll);
  out["delta_nll"] = price.delta_nll;
  if (price.delta_nll_error.has_value()) out["delta_nll_error"] = *price.delta_nll_error;
  out["kl"] = price.divergence;
  return out;
}

}  // namespace

std::string ToMarkdown(const EvalTable& table) {
  std::string out = absl::StrFormat(
      "%s; %d windows of %d tokens. Against a dense plain cache of the same windows, nats per "
      "token; ± standard error over windows; \"evicting\": tokens predicted once the cache is "
      "full.\n\n"
      "| policy | storage | slots | perplexity | ΔNLL | KL | ΔNLL evicting | KL evicting | "
      "MiB a lane | of dense |\n"
      "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
      table.title, table.windows, table.window);
  for (const EvalRow& row : table.rows) {
    absl::StrAppendFormat(
        &out, "| %s | %s | %d | %.3f | %s | %s | %s | %s | %.2f | %.0f %% |\n", row.point.label,
        row.point.storage, row.point.length(), std::exp(row.all.nll), DeltaCell(row.all),
        DivergenceCell(row.all), DeltaCell(row.evicted), DivergenceCell(row.evicted),
        Mebibytes(row.lane_bytes),
        100.0 * static_cast<double>(row.lane_bytes) / static_cast<double>(table.dense_bytes));
  }
  return out;
}

nlohmann::json ToJson(const EvalTable& table) {
  nlohmann::json out = nlohmann::json::array();
  for (const EvalRow& row : table.rows) {
    const LanePolicy& policy = row.point.policy;
    nlohmann::json entry = ToJson(row.all);
    entry["name"] =
        absl::StrCat("eval/", row.point.label, "/", row.point.storage, "/", row.point.length());
    entry["policy"] = policy.policy;
    entry["normalized"] = policy.normalize_scores;
    entry["storage"] = row.point.storage;
    entry["cache_length"] = row.point.length();
    entry["chunk"] = *policy.chunk_size;
    entry["grace"] = policy.grace;
    if (policy.sinks.has_value()) entry["sinks"] = *policy.sinks;
    entry["window"] = table.window;
    entry["windows"] = table.windows;
    entry["evicting"] = ToJson(row.evicted);
    entry["lane_bytes"] = row.lane_bytes;
    entry["dense_lane_bytes"] = table.dense_bytes;
    out.push_back(std::move(entry));
  }
  return out;
}

Plot ToPlot(const EvalTable& table) {
  Plot plot{.title = table.title,
            .x_label = "MiB of a lane's cache",
            .y_label = "KL to dense, nats per token once evicting",
            .lines = {}};
  for (const EvalRow& row : table.rows) {
    if (plot.lines.empty() || plot.lines.back().colour != row.point.label ||
        plot.lines.back().style != row.point.storage) {
      plot.lines.push_back({row.point.label, row.point.storage, {}});
    }
    const Price& price = row.evicted.tokens > 0 ? row.evicted : row.all;
    plot.lines.back().points.emplace_back(Mebibytes(row.lane_bytes), price.divergence);
  }
  return plot;
}

}  // namespace keyline
