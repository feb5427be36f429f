// --deterministic: the logits of a request have the same bits whatever runs
// beside it, however its prompt is cut and whenever it comes.
#include <algorithm>
#include <bit>
#include <map>
#include <random>
#include <tuple>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/base/mutex.h"
#include "ring/v1/plan.pb.h"
#include "tests/support/golden_file.h"
#include "tests/support/mini_group.h"

namespace ring {
namespace {

struct Setup {
  int dp;
  int tp;
  bool sliced_experts;
  DType activations;
};

// Bits of the logits that tokens were drawn from, by the request's seed and the
// token's position; one entry for each slice of the vocabulary. A request that
// runs twice has to give the same again.
class LogitBits {
 public:
  void Watch(const Mesh& mesh, Engine* engine) {
    const Range slice = mesh.vocab();
    const int group = mesh.dp_rank();
    engine->set_step_observer([=, this](const v1::BatchPlan& plan,
                                        const float* logits) {
      const auto& samples = plan.groups(group).samples();
      MutexLock lock(&mutex_);
      for (int i = 0; i < samples.size(); ++i) {
        const float* const row = logits + i * slice.size();
        std::vector<uint32_t> bits(slice.size());
        std::transform(row, row + slice.size(), bits.begin(),
                       [](float x) { return std::bit_cast<uint32_t>(x); });
        const Key key(samples[i].seed(), samples[i].position(), slice.begin);
        const auto [it, is_new] = bits_.emplace(key, bits);
        if (!is_new && it->second != bits) ++changed_;
      }
    });
  }

  // Tokens whose logits had other bits before.
  int changed() {
    MutexLock lock(&mutex_);
    return changed_;
  }
  size_t size() {
    MutexLock lock(&mutex_);
    return bits_.size();
  }

 private:
  using Key = std::tuple<uint64_t, int32_t, int64_t>;

  Mutex mutex_;
  std::map<Key, std::vector<uint32_t>> bits_ GUARDED_BY(mutex_);
  int changed_ GUARDED_BY(mutex_) = 0;
};

MiniGroup::Options GroupOptions(const Setup& setup, LogitBits* bits) {
  MiniGroup::Options options;
  options.model_dir = RingTinyDir();
  options.num_token_ids = 813;
  options.dp = setup.dp;
  options.tp = setup.tp;
  options.sliced_experts = setup.sliced_experts;
  options.activation_dtype = setup.activations;
  options.deterministic = true;
  options.on_ready = [bits](int, const Mesh& mesh, Engine* engine) {
    bits->Watch(mesh, engine);
  };
  return options;
}

// Goldens of all kinds, some of them sampled; the seed names the request.
std::vector<GenerationRequest> Requests() {
  const std::vector<GoldenPrompt> goldens = ReadGoldenPrompts();
  std::vector<GenerationRequest> requests;
  for (size_t i = 0; i < goldens.size(); i += 3) {
    GenerationRequest request;
    request.prompt = goldens[i].prompt_ids;
    request.max_new_tokens = 24;
    request.sampling.seed = 100 + i;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.2f;
    requests.push_back(std::move(request));
  }
  return requests;
}

class DeterministicTest : public testing::TestWithParam<Setup> {};

TEST_P(DeterministicTest, LogitBitsDoNotDependOnCompany) {
  const std::vector<GenerationRequest> requests = Requests();
  EXPECT_GT(requests.back().prompt.size(), 2000u);
  LogitBits bits;
  {
    auto group = MiniGroup::Start(GroupOptions(GetParam(), &bits));
    ASSERT_TRUE(group.ok()) << group.status();
    for (const GenerationRequest& request : requests) {
      ASSERT_TRUE((*group)->Run(request).error.ok());
    }
  }
  const size_t drawn = bits.size();
  EXPECT_EQ(drawn, requests.size() * 24 * GetParam().tp);
  std::mt19937 random(3);
  for (const int64_t max_batch_tokens : {72, 200, 4096}) {
    MiniGroup::Options options = GroupOptions(GetParam(), &bits);
    options.max_batch_tokens = max_batch_tokens;
    auto group = MiniGroup::Start(options);
    ASSERT_TRUE(group.ok()) << group.status();
    std::vector<GenerationRequest> order = requests;
    std::shuffle(order.begin(), order.end(), random);
    std::vector<uint64_t> ids;
    for (const GenerationRequest& request : order) {
      ids.push_back((*group)->Submit(request));
      // Some come while others decode.
      if (random() % 4 == 0) (*group)->Wait(ids[random() % ids.size()]);
    }
    for (const uint64_t id : ids) ASSERT_TRUE((*group)->Wait(id).error.ok());
  }
  EXPECT_EQ(bits.size(), drawn) << "another token was drawn";
  EXPECT_EQ(bits.changed(), 0);
}

TEST_P(DeterministicTest, FiftyRepeatsInABusyGroupAreTheSame) {
  LogitBits bits;
  auto group = MiniGroup::Start(GroupOptions(GetParam(), &bits));
  ASSERT_TRUE(group.ok()) << group.status();
  const std::vector<GenerationRequest> requests = Requests();
  std::vector<uint64_t> ids;
  for (int i = 0; i < 50; ++i) {
    ids.push_back((*group)->Submit(requests[0]));
    ids.push_back((*group)->Submit(requests[1 + i % 5]));
  }
  for (const uint64_t id : ids) ASSERT_TRUE((*group)->Wait(id).error.ok());
  EXPECT_EQ(bits.size(), size_t{6} * 24 * GetParam().tp);
  EXPECT_EQ(bits.changed(), 0);
}

INSTANTIATE_TEST_SUITE_P(Meshes, DeterministicTest,
                         testing::Values(Setup{1, 1, false, DType::kBFloat16},
                                         Setup{1, 1, false, DType::kFloat32},
                                         Setup{1, 4, false, DType::kBFloat16},
                                         Setup{2, 2, false, DType::kBFloat16},
                                         Setup{1, 2, true, DType::kBFloat16}),
                         [](const auto& info) {
                           const Setup& s = info.param;
                           return "Dp" + std::to_string(s.dp) + "Tp" +
                                  std::to_string(s.tp) +
                                  (s.sliced_experts ? "Sliced" : "") +
                                  (s.activations == DType::kFloat32 ? "F32"
                                                                    : "");
                         });

}  // namespace
}  // namespace ring
