#include "coordinator/cli/bench/svg_plot.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace ring {
namespace {

using L = PlotLayout;

constexpr int kTicks = 5;
// Told apart also by those who do not see red and green (Okabe and Ito).
constexpr std::array<const char*, 4> kColours = {"#0072b2", "#e69f00",
                                                 "#009e73", "#cc79a7"};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Text(double x, double y, const char* anchor,
                 const std::string& text) {
  return absl::StrFormat(
      "<text x=\"%g\" y=\"%g\" text-anchor=\"%s\">%s</text>\n", x, y, anchor,
      Escape(text));
}

std::string Line(double x1, double y1, double x2, double y2,
                 const char* colour) {
  return absl::StrFormat(
      "<line x1=\"%g\" y1=\"%g\" x2=\"%g\" y2=\"%g\" stroke=\"%s\"/>\n", x1, y1,
      x2, y2, colour);
}

// Maps values of one plot to pixels.
struct Scale {
  double x_max = 1;
  double y_max = 1;
  double X(double x) const {
    return L::kLeft + x / x_max * (L::kRight - L::kLeft);
  }
  double Y(double y) const {
    return L::kBottom - y / y_max * (L::kBottom - L::kTop);
  }
};

Scale ScaleOf(const Plot& plot) {
  double x_max = 0;
  double y_max = 0;
  for (const Series& series : plot.series) {
    for (const auto& [x, y] : series.points) {
      x_max = std::max(x_max, x);
      y_max = std::max(y_max, y);
    }
  }
  return {RoundUp(x_max), RoundUp(y_max)};
}

std::string Axes(const Plot& plot, const Scale& scale) {
  std::string svg;
  for (int i = 0; i <= kTicks; ++i) {
    const double x = scale.x_max * i / kTicks;
    const double y = scale.y_max * i / kTicks;
    absl::StrAppend(
        &svg, Line(L::kLeft, scale.Y(y), L::kRight, scale.Y(y), "#dddddd"),
        Text(L::kLeft - 8, scale.Y(y) + 4, "end", absl::StrCat(y)),
        Line(scale.X(x), L::kBottom, scale.X(x), L::kBottom + 5, "#333333"),
        Text(scale.X(x), L::kBottom + 20, "middle", absl::StrCat(x)));
  }
  absl::StrAppend(&svg,
                  Line(L::kLeft, L::kBottom, L::kRight, L::kBottom, "#333333"),
                  Line(L::kLeft, L::kTop, L::kLeft, L::kBottom, "#333333"),
                  Text(L::kLeft, L::kTop - 14, "start",
                       absl::StrCat(plot.title, ", ", plot.y_label)),
                  Text((L::kLeft + L::kRight) / 2, L::kBottom + 40, "middle",
                       plot.x_label));
  return svg;
}

std::string Draw(const Series& series, const Scale& scale, const char* colour) {
  std::string line;
  std::string dots;
  for (const auto& [x, y] : series.points) {
    absl::StrAppendFormat(&line, "%s%g,%g", line.empty() ? "" : " ", scale.X(x),
                          scale.Y(y));
    // The title shows where the mouse is.
    absl::StrAppendFormat(&dots,
                          "<circle cx=\"%g\" cy=\"%g\" r=\"3.5\" fill=\"%s\">"
                          "<title>%s at %g: %g</title></circle>\n",
                          scale.X(x), scale.Y(y), colour, Escape(series.name),
                          x, y);
  }
  return absl::StrFormat(
      "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" "
      "stroke-width=\"2\"/>\n%s",
      line, colour, dots);
}

std::string DrawPlot(const Plot& plot) {
  const Scale scale = ScaleOf(plot);
  std::string svg = Axes(plot, scale);
  for (size_t i = 0; i < plot.series.size(); ++i) {
    const char* const colour = kColours[i % kColours.size()];
    const double y = L::kTop + 10 + 20 * static_cast<double>(i);
    absl::StrAppend(&svg, Draw(plot.series[i], scale, colour),
                    Line(L::kRight + 15, y, L::kRight + 35, y, colour),
                    Text(L::kRight + 42, y + 4, "start", plot.series[i].name));
  }
  return svg;
}

}  // namespace

double RoundUp(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10.0, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (value <= factor * power) return factor * power;
  }
  return 10 * power;
}

std::string RenderSvg(const std::vector<Plot>& plots) {
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%g\" height=\"%g\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      L::kWidth, L::kHeight * static_cast<double>(plots.size()));
  for (size_t i = 0; i < plots.size(); ++i) {
    absl::StrAppendFormat(&svg, "<g transform=\"translate(0,%g)\">\n%s</g>\n",
                          L::kHeight * static_cast<double>(i),
                          DrawPlot(plots[i]));
  }
  return svg + "</svg>\n";
}

}  // namespace ring
