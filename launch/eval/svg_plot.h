// Lines on two logarithmic axes, as an SVG picture. Any thread.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace keyline {

struct PlotLine {
  std::string colour;  // name in the legend: lines of one name share a colour
  std::string style;   // the same for dashes and the points' shape
  std::vector<std::pair<double, double>> points;  // (x, y); one that is not > 0 has no place
};

struct Plot {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<PlotLine> lines;
};

std::string ToSvg(const Plot& plot);

}  // namespace keyline
