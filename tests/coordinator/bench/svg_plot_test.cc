#include "coordinator/cli/bench/svg_plot.h"

#include <gtest/gtest.h>

#include <cctype>
#include <string>
#include <utility>
#include <vector>

namespace ring {
namespace {

// Reads the little XML that pictures need: elements, quoted attributes, text;
// no comments, declarations or CDATA.
class XmlReader {
 public:
  explicit XmlReader(const std::string& xml) : xml_(xml) {}

  // Whether all of it is one well-formed element.
  bool IsWellFormed() { return Element() && at_ == xml_.size(); }

 private:
  bool Take(const std::string& text) {
    if (xml_.compare(at_, text.size(), text) != 0) return false;
    at_ += text.size();
    return true;
  }
  std::string Name() {
    const size_t begin = at_;
    while (at_ < xml_.size() &&
           (std::isalnum(static_cast<unsigned char>(xml_[at_])) != 0 ||
            xml_[at_] == '-' || xml_[at_] == ':')) {
      ++at_;
    }
    return xml_.substr(begin, at_ - begin);
  }
  // Up to < or the end mark; & only in front of the names it may have.
  bool Text(char end) {
    for (; at_ < xml_.size() && xml_[at_] != '<' && xml_[at_] != end; ++at_) {
      if (xml_[at_] == '>') return false;
      if (xml_[at_] != '&') continue;
      if (!Take("&amp;") && !Take("&lt;") && !Take("&gt;") && !Take("&quot;")) {
        return false;
      }
      --at_;
    }
    return true;
  }
  bool Element() {
    if (!Take("<")) return false;
    const std::string name = Name();
    if (name.empty()) return false;
    while (Take(" ")) {
      if (Name().empty() || !Take("=\"") || !Text('"') || !Take("\"")) {
        return false;
      }
    }
    if (Take("/>")) return true;
    if (!Take(">") || !Text('<')) return false;
    while (xml_.compare(at_, 2, "</") != 0) {
      if (!Element() || !Text('<')) return false;
    }
    return Take("</" + name + ">");
  }

  const std::string& xml_;
  size_t at_ = 0;
};

bool IsXml(std::string xml) {
  if (!xml.empty() && xml.back() == '\n') xml.pop_back();
  return XmlReader(xml).IsWellFormed();
}

std::vector<std::pair<double, double>> Dots(const std::string& svg) {
  const auto number = [&svg](const std::string& before, size_t from) {
    const size_t at = svg.find(before, from);
    return at == std::string::npos ? -1
                                   : std::stod(svg.substr(at + before.size()));
  };
  std::vector<std::pair<double, double>> dots;
  for (size_t at = svg.find("<circle "); at != std::string::npos;
       at = svg.find("<circle ", at + 1)) {
    dots.emplace_back(number(" cx=\"", at), number(" cy=\"", at));
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
  EXPECT_TRUE(IsXml(svg)) << svg;
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
  EXPECT_TRUE(IsXml(svg)) << svg;
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_EQ(Dots(svg).size(), 2u);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_TRUE(IsXml(RenderSvg({})));
}

TEST(SvgPlotTest, TheCheckOfXmlFindsMistakes) {
  for (const char* bad : {"<a><b></a></b>", "<a>", "<a/><a/>", "<a>&</a>",
                          "<a b=c/>", "<a>1 < 2</a>", "text"}) {
    EXPECT_FALSE(IsXml(bad)) << bad;
  }
  EXPECT_TRUE(IsXml("<a b=\"&amp;\"><c/>&lt;</a>"));
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
