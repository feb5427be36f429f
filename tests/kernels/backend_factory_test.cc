#include "kernels/backend_factory.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ring {
namespace {

TEST(MakeBackendTest, MakesTheCpuBackend) {
  const auto backend = MakeBackend("cpu", 2);
  ASSERT_TRUE(backend.ok()) << backend.status();
  EXPECT_THAT((*backend)->description(), testing::StartsWith("cpu ("));
}

TEST(MakeBackendTest, RefusesOtherNames) {
  for (const char* name :
       {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cudax", "cpu:0"}) {
    const absl::Status status = MakeBackend(name, 1).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()),
                testing::HasSubstr("use cpu, cuda or cuda:N"));
  }
}

// No machine has that many GPUs, and most have none: either way one line says
// what is missing.
TEST(MakeBackendTest, SaysWhatIsMissing) {
  const absl::Status status = MakeBackend("cuda:999", 1).status();
  ASSERT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()),
              testing::AnyOf(testing::StartsWith("device cuda:999: "),
                             testing::HasSubstr("built without CUDA")));
}

}  // namespace
}  // namespace ring
