// Line plots as an SVG picture.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace ring {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y), both >= 0
};

// One plot: axes from 0 to a round number beyond the largest value, a line with
// dots per series, a legend.
struct Plot {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<Series> series;
};

// A plot's axes lie within its picture so, in pixels; y grows downwards. The
// plots of a picture stand one below the other.
struct PlotLayout {
  static constexpr double kWidth = 640;
  static constexpr double kHeight = 300;
  static constexpr double kLeft = 80;
  static constexpr double kRight = 520;
  static constexpr double kTop = 40;
  static constexpr double kBottom = 240;
};

// The smallest of 1, 2, 5 times a power of ten that is not less than `value`;
// 1 for 0.
double RoundUp(double value);

// An SVG document, UTF-8.
std::string RenderSvg(const std::vector<Plot>& plots);

}  // namespace ring
