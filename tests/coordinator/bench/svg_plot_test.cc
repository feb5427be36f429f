#include "coordinator/cli/bench/svg_plot.h"

#include <gtest/gtest.h>

#include <regex>
#include <string>
#include <vector>

namespace ring {
namespace {

// Empty when `xml` is one well-formed element: tags nest, attributes are
// quoted, & and < are escaped. No comments, declarations or CDATA.
std::string WhyNotXml(const std::string& xml) {
  static const std::regex kTag(
      R"re(<(/?)([a-zA-Z]+)((?: [a-zA-Z0-9:-]+="[^"<]*")*)(/?)>)re");
  static const std::regex kStrayMark(R"re(&(?!(amp|lt|gt|quot);)|[<>])re");
  std::vector<std::string> open;
  std::string text;
  auto at = xml.cbegin();
  int elements = 0;
  std::smatch tag;
  while (std::regex_search(at, xml.cend(), tag, kTag)) {
    text += std::string(at, tag[0].first) + tag[3].str();
    at = tag[0].second;
    const std::string name = tag[2];
    if (tag[1].length() > 0) {
      if (open.empty() || open.back() != name) return "unexpected /" + name;
      open.pop_back();
    } else {
      if (open.empty() && ++elements > 1) return "a second root";
      if (tag[4].length() == 0) open.push_back(name);
    }
  }
  text += std::string(at, xml.cend());
  if (!open.empty()) return "open: " + open.back();
  if (std::regex_search(text, kStrayMark)) return "a mark is not escaped";
  return elements == 1 ? "" : "no element";
}

std::vector<std::pair<double, double>> Dots(const std::string& svg) {
  static const std::regex kDot(R"re(<circle cx="([^"]*)" cy="([^"]*)")re");
  std::vector<std::pair<double, double>> dots;
  for (std::sregex_iterator it(svg.begin(), svg.end(), kDot), end; it != end;
       ++it) {
    dots.emplace_back(std::stod((*it)[1]), std::stod((*it)[2]));
  }
  return dots;
}

TEST(SvgPlotTest, PutsPointsWhereTheAxesSay) {
  // Axes from 0 to 10 and from 0 to 200.
  const std::string svg = RenderSvg(
      {{"Latency",
        "requests/s",
        "ms",
        {{"p50", {{0, 0}, {5, 100}, {10, 200}}}, {"p99", {{2.5, 150}}}}}});
  EXPECT_EQ(WhyNotXml(svg), "");
  const std::vector<std::pair<double, double>> dots = Dots(svg);
  ASSERT_EQ(dots.size(), 4u);
  // The origin is at (80, 240), the far corner at (520, 40).
  EXPECT_EQ(dots[0], std::make_pair(80.0, 240.0));
  EXPECT_EQ(dots[1], std::make_pair(300.0, 140.0));
  EXPECT_EQ(dots[2], std::make_pair(520.0, 40.0));
  EXPECT_EQ(dots[3], std::make_pair(190.0, 90.0));
  EXPECT_NE(svg.find("points=\"80,240 300,140 520,40\""), std::string::npos);
  // Tick labels stand at their values.
  EXPECT_NE(svg.find("<text x=\"520\" y=\"260\" text-anchor=\"middle\">10<"),
            std::string::npos);
  EXPECT_NE(svg.find("<text x=\"72\" y=\"44\" text-anchor=\"end\">200<"),
            std::string::npos);
}

TEST(SvgPlotTest, EscapesNamesAndDrawsNothing) {
  const std::string svg =
      RenderSvg({{"a < b & c", "\"x\"", "y > 0", {{"<p50>", {{1, 1}}}}},
                 {"empty", "x", "y", {{"p50", {}}}},
                 {"zero", "x", "y", {{"p50", {{0, 0}}}}}});
  EXPECT_EQ(WhyNotXml(svg), "");
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_EQ(Dots(svg).size(), 2u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(WhyNotXml(RenderSvg({})), "");
}

TEST(SvgPlotTest, TheCheckOfXmlFindsMistakes) {
  for (const char* bad : {"<a><b></a></b>", "<a>", "<a/><a/>", "<a>&</a>",
                          "<a b=c/>", "<a>1 < 2</a>", "text"}) {
    EXPECT_NE(WhyNotXml(bad), "") << bad;
  }
  EXPECT_EQ(WhyNotXml("<a b=\"&amp;\"><c/>&lt;</a>"), "");
}

TEST(RoundUpTest, IsOneTwoOrFiveTimesAPowerOfTen) {
  EXPECT_EQ(RoundUp(0), 1);
  EXPECT_EQ(RoundUp(1), 1);
  EXPECT_EQ(RoundUp(1.01), 2);
  EXPECT_EQ(RoundUp(2.1), 5);
  EXPECT_EQ(RoundUp(5.1), 10);
  EXPECT_EQ(RoundUp(73), 100);
  EXPECT_DOUBLE_EQ(RoundUp(0.03), 0.05);
}

}  // namespace
}  // namespace ring
