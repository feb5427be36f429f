#include "kernels/base/host_port.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(ParseHostPortTest, TakesNamesAndAddresses) {
  const struct {
    const char* text;
    const char* host;
    int port;
  } cases[] = {
      {"node7:7000", "node7", 7000},
      {"127.0.0.1:1", "127.0.0.1", 1},
      {"[::1]:65535", "::1", 65535},
      {"[fe80::1%eth0]:50051", "fe80::1%eth0", 50051},
  };
  for (const auto& c : cases) {
    const auto parsed = ParseHostPort(c.text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->host, c.host);
    EXPECT_EQ(parsed->port, c.port);
    EXPECT_EQ(parsed->ToString(), c.text);
  }
}

TEST(ParseHostPortTest, SaysWhatIsWrong) {
  const struct {
    const char* text;
    const char* what;
  } cases[] = {
      {"", "no port"},
      {"localhost", "no port"},
      {":7000", "no host"},
      {"[]:7000", "no host"},
      {"localhost:", "the port \"\" is no number in [1, 65535]"},
      {"localhost:0", "the port \"0\""},
      {"localhost:99999", "the port \"99999\" is no number in [1, 65535]"},
      {"localhost:4294967377", "the port \"4294967377\""},
      {"localhost:-1", "the port \"-1\""},
      {"localhost:+1", "the port \"+1\""},
      {"localhost:http", "the port \"http\""},
      {"::1:7000", "needs brackets"},
      {"http://localhost:7000", "needs brackets"},
      {"unix:/tmp/socket", "the port \"/tmp/socket\""},
      {"a b:7000", "\"a b\" is no host"},
  };
  for (const auto& c : cases) {
    const absl::Status status = ParseHostPort(c.text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.text;
    EXPECT_THAT(
        std::string(status.message()),
        testing::AllOf(testing::HasSubstr(c.text), testing::HasSubstr(c.what)));
  }
}

TEST(ParseHostPortTest, PortZeroOnlyWhereItHasAMeaning) {
  EXPECT_TRUE(ParseHostPort("127.0.0.1:0", /*min_port=*/0).ok());
}

}  // namespace
}  // namespace ring
