#include "launch/eval/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace keyline {
namespace {

constexpr double kWidth = 860;
constexpr double kHeight = 500;
constexpr double kLeft = 80;
constexpr double kRight = 660;  // the legend stands beyond
constexpr double kTop = 46;
constexpr double kBottom = 440;
// Okabe and Ito's colours, which most colour-blind people tell apart.
constexpr const char* kColours[] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                    "#E69F00", "#56B4E9", "#000000"};
constexpr const char* kDashes[] = {"none", "7 3", "2 3", "9 3 2 3"};

// One axis: values to pixels, and where ticks stand.
class LogAxis {
 public:
  // From `first` pixel to `last`, covering `values`, widened to whole ticks.
  LogAxis(std::vector<double> values, double first, double last) : first_(first), last_(last) {
    if (values.empty()) values = {1, 10};
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    const int first_decade = static_cast<int>(std::floor(std::log10(*low)));
    const int last_decade = static_cast<int>(std::ceil(std::log10(*high)));
    for (int decade = first_decade; decade <= last_decade; ++decade) {
      for (double step : {1.0, 2.0, 5.0}) ticks_.push_back(step * std::pow(10.0, decade));
    }
    // Drop the ticks outside, but for one on each side.
    while (ticks_.size() > 2 && ticks_[1] <= *low) ticks_.erase(ticks_.begin());
    while (ticks_.size() > 2 && ticks_[ticks_.size() - 2] >= *high) ticks_.pop_back();
  }

  double Pixel(double value) const {
    const double from = std::log(ticks_.front());
    const double share = (std::log(value) - from) / (std::log(ticks_.back()) - from);
    return first_ + share * (last_ - first_);
  }
  const std::vector<double>& ticks() const { return ticks_; }

 private:
  double first_;
  double last_;
  std::vector<double> ticks_;
};

std::string Escaped(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

std::string Text(double x, double y, const std::string& anchor, const std::string& text,
                 const std::string& more = "") {
  return absl::StrFormat("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\"%s>%s</text>\n", x, y,
                         anchor, more, Escaped(text));
}

std::string Line(double x1, double y1, double x2, double y2, const std::string& stroke) {
  return absl::StrFormat("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n",
                         x1, y1, x2, y2, stroke);
}

// A circle, square, triangle or diamond.
std::string Marker(size_t shape, double x, double y, const std::string& colour) {
  const std::string fill = absl::StrCat(" fill=\"", colour, "\"/>\n");
  switch (shape % 4) {
    case 0:
      return absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\"%s", x, y, fill);
    case 1:
      return absl::StrFormat("<rect x=\"%.1f\" y=\"%.1f\" width=\"7\" height=\"7\"%s", x - 3.5,
                             y - 3.5, fill);
    case 2:
      return absl::StrFormat("<path d=\"M%.1f %.1f l5 8.5 h-10 z\"%s", x, y - 5.5, fill);
    default:
      return absl::StrFormat("<path d=\"M%.1f %.1f l5 5.5 l-5 5.5 l-5 -5.5 z\"%s", x, y - 5.5,
                             fill);
  }
}

// Where `name` stands among `names`, appended if new.
size_t IndexOf(const std::string& name, std::vector<std::string>& names) {
  const size_t index = std::find(names.begin(), names.end(), name) - names.begin();
  if (index == names.size()) names.push_back(name);
  return index;
}

std::string Axes(const Plot& plot, const LogAxis& x, const LogAxis& y) {
  std::string svg;
  for (double tick : x.ticks()) {
    const double at = x.Pixel(tick);
    svg += Line(at, kTop, at, kBottom, "#e0e0e0");
    svg += Text(at, kBottom + 18, "middle", absl::StrFormat("%g", tick));
  }
  for (double tick : y.ticks()) {
    const double at = y.Pixel(tick);
    svg += Line(kLeft, at, kRight, at, "#e0e0e0");
    svg += Text(kLeft - 8, at + 4, "end", absl::StrFormat("%g", tick));
  }
  svg += Line(kLeft, kBottom, kRight, kBottom, "#404040");
  svg += Line(kLeft, kTop, kLeft, kBottom, "#404040");
  const double middle = (kTop + kBottom) / 2;
  svg += Text((kLeft + kRight) / 2, kTop - 20, "middle", plot.title, " font-weight=\"bold\"");
  svg += Text((kLeft + kRight) / 2, kBottom + 42, "middle", plot.x_label);
  svg += Text(20, middle, "middle", plot.y_label,
              absl::StrFormat(" transform=\"rotate(-90 20 %.1f)\"", middle));
  return svg;
}

std::string Polyline(const std::vector<std::pair<double, double>>& pixels,
                     const std::string& colour, const std::string& dash) {
  std::string points;
  for (const auto& [x, y] : pixels) absl::StrAppendFormat(&points, "%.1f,%.1f ", x, y);
  return absl::StrFormat(
      "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" "
      "stroke-dasharray=\"%s\"/>\n",
      points, colour, dash);
}

}  // namespace

std::string ToSvg(const Plot& plot) {
  std::vector<double> xs;
  std::vector<double> ys;
  const auto shown = [](const auto& point) { return point.first > 0 && point.second > 0; };
  for (const PlotLine& line : plot.lines) {
    for (const auto& point : line.points) {
      if (!shown(point)) continue;
      xs.push_back(point.first);
      ys.push_back(point.second);
    }
  }
  const LogAxis x(xs, kLeft, kRight);
  const LogAxis y(ys, kBottom, kTop);
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" font-family=\"sans-serif\" "
      "font-size=\"13\" fill=\"#202020\">\n<rect width=\"100%%\" height=\"100%%\" "
      "fill=\"white\"/>\n",
      kWidth, kHeight);
  svg += Axes(plot, x, y);

  std::vector<std::string> colours;
  std::vector<std::string> styles;
  for (const PlotLine& line : plot.lines) {
    std::vector<std::pair<double, double>> pixels;
    for (const auto& point : line.points) {
      if (shown(point)) pixels.emplace_back(x.Pixel(point.first), y.Pixel(point.second));
    }
    if (pixels.empty()) continue;
    const std::string colour = kColours[IndexOf(line.colour, colours) % std::size(kColours)];
    const size_t style = IndexOf(line.style, styles);
    if (pixels.size() > 1) svg += Polyline(pixels, colour, kDashes[style % std::size(kDashes)]);
    for (const auto& [at_x, at_y] : pixels) svg += Marker(style, at_x, at_y, colour);
  }

  double at = kTop + 10;
  for (size_t i = 0; i < colours.size(); ++i, at += 22) {
    const std::string colour = kColours[i % std::size(kColours)];
    svg += Polyline({{kRight + 20, at}, {kRight + 50, at}}, colour, "none");
    svg += Text(kRight + 58, at + 4, "start", colours[i]);
  }
  at += 12;
  for (size_t i = 0; i < styles.size(); ++i, at += 22) {
    const std::string grey = "#606060";
    svg += Polyline({{kRight + 20, at}, {kRight + 50, at}}, grey, kDashes[i % std::size(kDashes)]);
    svg += Marker(i, kRight + 35, at, grey);
    svg += Text(kRight + 58, at + 4, "start", styles[i]);
  }
  return svg + "</svg>\n";
}

}  // namespace keyline
