// The result of `keyline eval` as a Markdown table, as JSON and as a plot.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/eval/divergence.h"
#include "launch/eval/grid.h"
#include "launch/eval/svg_plot.h"

namespace keyline {

struct EvalRow {
  EvalPoint point;
  Price all;      // over every token
  Price evicted;  // over the tokens predicted once the cache has begun to evict
  size_t lane_bytes = 0;
};

struct EvalTable {
  std::string title;  // model, number format, text
  int windows = 0;
  int window = 0;             // tokens of each
  size_t dense_bytes = 0;     // of a lane of the reference: dense, plain, as long as a window
  std::vector<EvalRow> rows;  // by policy, storage, falling length
};

std::string ToMarkdown(const EvalTable& table);
// A list of {"name": "eval/POLICY/STORAGE/LENGTH", ...}.
nlohmann::json ToJson(const EvalTable& table);
// KL against bytes of a lane, a colour for each policy, a style for each storage. KL is that of the
// tokens predicted once the cache evicts: over all tokens it would depend on the window's length.
Plot ToPlot(const EvalTable& table);

}  // namespace keyline
