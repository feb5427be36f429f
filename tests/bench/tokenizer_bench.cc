// Speed of encoding and decoding with ring-tiny's tokenizer, one thread.
//   build/cpu/bench/tokenizer_bench
#include <cstdlib>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "benchmark/benchmark.h"
#include "coordinator/text/tokenizer.h"

namespace ring {
namespace {

constexpr size_t kHugeBytes = 10'000'000;

const Tokenizer& RingTiny() {
  static const Tokenizer* const tokenizer = [] {
    auto loaded = Tokenizer::Load(RING_TEST_DATA "/ring-tiny");
    if (!loaded.ok()) {
      std::cerr << loaded.status() << std::endl;
      std::exit(1);
    }
    return loaded->release();
  }();
  return *tokenizer;
}

// Sentences of words whose frequency falls as 1 / rank, as in real text.
std::string English(size_t bytes) {
  std::mt19937 random(1);
  std::vector<std::string> words;
  for (int i = 0; i < 20000; ++i) {
    std::string word(2 + random() % 9, 'a');
    for (char& c : word) c = "etaoinshrdlucmfwypvbgkjqxz"[random() % 20];
    words.push_back(std::move(word));
  }
  std::vector<double> weights;
  for (size_t i = 0; i < words.size(); ++i) {
    weights.push_back(1.0 / static_cast<double>(i + 1));
  }
  std::discrete_distribution<size_t> draw(weights.begin(), weights.end());
  std::string text;
  while (text.size() < bytes) {
    text += words[draw(random)];
    text += random() % 12 == 0 ? ". " : " ";
  }
  return text;
}

void Encode(benchmark::State& state, const std::string& text) {
  for ([[maybe_unused]] auto _ : state) {
    auto ids = RingTiny().Encode(text, AddedTokens::kRecognise);
    if (!ids.ok()) state.SkipWithError("not encoded");
    benchmark::DoNotOptimize(ids);
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(text.size()));
}

void BM_EncodeEnglish(benchmark::State& state) {
  Encode(state, English(static_cast<size_t>(state.range(0))));
}
BENCHMARK(BM_EncodeEnglish)->Arg(1000)->Arg(10'000'000);

void BM_EncodeOneWord(benchmark::State& state) {
  std::string text;
  while (text.size() < kHugeBytes) text += "theinganderisonat";
  Encode(state, text);
}
BENCHMARK(BM_EncodeOneWord);

void BM_EncodeSpaces(benchmark::State& state) {
  Encode(state, std::string(kHugeBytes, ' ') + "x");
}
BENCHMARK(BM_EncodeSpaces);

void BM_EncodeControlTokens(benchmark::State& state) {
  std::string text;
  while (text.size() < kHugeBytes) text += "<role>x<|role_end|>";
  Encode(state, text);
}
BENCHMARK(BM_EncodeControlTokens);

void BM_DecodeEnglish(benchmark::State& state) {
  const std::string text = English(1'000'000);
  const auto ids = RingTiny().Encode(text, AddedTokens::kRecognise);
  for ([[maybe_unused]] auto _ : state) {
    benchmark::DoNotOptimize(RingTiny().Decode(*ids, true));
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<int64_t>(text.size()));
}
BENCHMARK(BM_DecodeEnglish);

}  // namespace
}  // namespace ring

BENCHMARK_MAIN();
