#include "tests/parallel/collective_cases.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "gtest/gtest.h"
#include "tests/kernels/cuda/device_arena.h"

namespace ring {
namespace {

// A byte that tells where it comes from.
unsigned char ByteOf(int from, int to, int64_t i) {
  return static_cast<unsigned char>(from * 37 + to * 11 + i * 7 + i / 256);
}

void AllGatherBringsAllBlocks(Communicator* world, ControlChannel*,
                              Backend* backend) {
  const int n = world->size();
  for (const int64_t bytes : {0, 1, 7, 4096, 300001}) {
    for (const bool in_place : {false, true}) {
      std::vector<unsigned char> own(bytes);
      for (int64_t i = 0; i < bytes; ++i) own[i] = ByteOf(world->rank(), 0, i);
      std::vector<unsigned char> all(n * bytes, 0xee);
      if (in_place) {
        std::copy(own.begin(), own.end(), all.begin() + world->rank() * bytes);
      }
      DeviceArena arena(backend);
      unsigned char* const recv = arena.Put(all);
      world->AllGather(in_place ? recv + world->rank() * bytes : arena.Put(own),
                       recv, bytes);
      all = arena.Get(recv, n * bytes);
      for (int r = 0; r < n; ++r) {
        for (int64_t i = 0; i < bytes; ++i) {
          ASSERT_EQ(all[r * bytes + i], ByteOf(r, 0, i))
              << "of rank " << r << " at " << i << " of " << bytes;
        }
      }
    }
  }
}

// Uneven, often 0, large for one pair.
int64_t BytesBetween(int from, int to, int round) {
  if (round == 0) return 0;
  if (round == 1 && from == 0 && to == 1) return 200003;
  return (from * 3 + to * 5 + round) % 4 == 0 ? 0 : from * 13 + to * 29 + round;
}

void AllToAllTakesUnevenAndEmptyBlocks(Communicator* world, ControlChannel*,
                                       Backend* backend) {
  const int n = world->size();
  const int me = world->rank();
  for (int round = 0; round < 6; ++round) {
    std::vector<int64_t> send_bytes(n);
    std::vector<int64_t> recv_bytes(n);
    std::vector<unsigned char> send;
    int64_t recv_total = 0;
    for (int r = 0; r < n; ++r) {
      send_bytes[r] = BytesBetween(me, r, round);
      recv_bytes[r] = BytesBetween(r, me, round);
      for (int64_t i = 0; i < send_bytes[r]; ++i) {
        send.push_back(ByteOf(me, r, i));
      }
      recv_total += recv_bytes[r];
    }
    // Beside the bytes, an array with one number a byte.
    std::vector<int32_t> numbers(send.begin(), send.end());
    DeviceArena arena(backend);
    auto* const recv_data = arena.Make<unsigned char>(recv_total);
    auto* const recv_numbers = arena.Make<int32_t>(recv_total);
    world->AllToAll({{arena.Put(send), recv_data, 1},
                     {arena.Put(numbers), recv_numbers, sizeof(int32_t)}},
                    send_bytes, recv_bytes);
    const std::vector<unsigned char> recv = arena.Get(recv_data, recv_total);
    numbers = arena.Get(recv_numbers, recv_total);
    size_t at = 0;
    for (int r = 0; r < n; ++r) {
      for (int64_t i = 0; i < recv_bytes[r]; ++i, ++at) {
        ASSERT_EQ(recv[at], ByteOf(r, me, i)) << "from " << r << " at " << i;
        ASSERT_EQ(numbers[at], recv[at]) << "from " << r << " at " << i;
      }
    }
  }
}

// Small integers: exact in bf16, and in fp32 after any sum.
float PartialOf(int rank, int64_t row, int64_t col) {
  return static_cast<float>((rank * 7 + row * 3 + col) % 19 - 9);
}
float ResidualOf(int64_t row, int64_t col) {
  return static_cast<float>((row * 5 + col * 2) % 23 - 11);
}

struct ReduceCase {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<RowRange> keep;
  DType partial_dtype = DType::kFloat32;
  DType normed_dtype = DType::kFloat32;
  bool norm = true;
  int ranks_per_group = 0;  // 0: no group scale
};

double SquaresOf(int rank, int64_t row) { return 3 + rank * 2 + row % 5; }

// What a rank's residual holds after the sum.
double ExpectedSum(const ReduceCase& c, int size, int64_t row, int64_t col) {
  const double width = 64;
  double sum = ResidualOf(row, col);
  for (int r = 0; r < size; ++r) {
    double scale = 1;
    if (c.ranks_per_group > 0) {
      double squares = 0;
      for (int peer = 0; peer < size; ++peer) {
        if (peer / c.ranks_per_group == r / c.ranks_per_group) {
          squares += SquaresOf(peer, row);
        }
      }
      scale = 1 / std::sqrt(squares / width + 1e-6);
    }
    sum += scale * PartialOf(r, row, col);
  }
  return sum;
}

void CheckReduce(Communicator* world, Backend* backend, const ReduceCase& c) {
  const int me = world->rank();
  const RowRange mine = c.keep[me];
  const int64_t values = mine.size() * c.cols;
  std::vector<float> partial(c.rows * c.cols);
  std::vector<BFloat16> partial_bf16(c.rows * c.cols);
  std::vector<float> squares(c.rows);
  for (int64_t row = 0; row < c.rows; ++row) {
    squares[row] = static_cast<float>(SquaresOf(me, row));
    for (int64_t col = 0; col < c.cols; ++col) {
      partial[row * c.cols + col] = PartialOf(me, row, col);
      partial_bf16[row * c.cols + col] = ToBFloat16(PartialOf(me, row, col));
    }
  }
  std::vector<float> residual(values);
  for (int64_t i = 0; i < values; ++i) {
    residual[i] = ResidualOf(mine.begin + i / c.cols, i % c.cols);
  }
  std::vector<float> weight(c.cols);
  for (int64_t col = 0; col < c.cols; ++col) {
    weight[col] = 0.5f + static_cast<float>(col % 3);
  }
  const bool bf16_out = c.normed_dtype == DType::kBFloat16;

  DeviceArena arena(backend);
  ReduceRowsArgs args;
  args.partial_dtype = c.partial_dtype;
  args.partial = arena.Put(partial);
  if (c.partial_dtype == DType::kBFloat16) {
    args.partial = arena.Put(partial_bf16);
  }
  args.rows = c.rows;
  args.cols = c.cols;
  args.keep = c.keep;
  args.residual = arena.Put(residual);
  if (c.norm) {
    args.norm_weight = arena.Put(weight);
    args.norm_eps = 1e-6f;
    args.normed_dtype = c.normed_dtype;
    args.normed =
        arena.MakeBytes(values * static_cast<int64_t>(SizeOf(c.normed_dtype)));
  }
  if (c.ranks_per_group > 0) {
    args.group_scale = {arena.Put(squares), c.ranks_per_group, 64, 1e-6f};
  }
  world->ReduceRows(args);
  residual = arena.Get(args.residual, values);
  std::vector<float> normed;
  if (c.norm) normed = arena.GetFloats(args.normed, values, c.normed_dtype);

  // fp32 sums of fewer than 100 terms; bf16 rounds to 8 bits.
  const double tolerance = 1e-5;
  const double normed_tolerance = bf16_out ? 1.0 / 256 : 1e-5;
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    double square_sum = 0;
    for (int64_t col = 0; col < c.cols; ++col) {
      const double sum = ExpectedSum(c, world->size(), row, col);
      square_sum += sum * sum;
      const float got = residual[(row - mine.begin) * c.cols + col];
      ASSERT_NEAR(got, sum, tolerance * (1 + std::abs(sum)))
          << "row " << row << " col " << col;
    }
    if (!c.norm) continue;
    const double rms = std::sqrt(square_sum / c.cols + 1e-6);
    for (int64_t col = 0; col < c.cols; ++col) {
      const double want =
          ExpectedSum(c, world->size(), row, col) / rms * weight[col];
      ASSERT_NEAR(normed[(row - mine.begin) * c.cols + col], want,
                  normed_tolerance * (1 + std::abs(want)));
    }
  }
}

std::vector<RowRange> EveryoneKeeps(int size, int64_t rows) {
  return std::vector<RowRange>(size, RowRange{0, rows});
}

// Slices of ceil(rows / size), the last ones short or empty.
std::vector<RowRange> Scatter(int size, int64_t rows) {
  const int64_t chunk = (rows + size - 1) / size;
  std::vector<RowRange> keep;
  for (int r = 0; r < size; ++r) {
    keep.push_back(
        {std::min(r * chunk, rows), std::min((r + 1) * chunk, rows)});
  }
  return keep;
}

void ReduceRowsAsAllReduce(Communicator* world, ControlChannel*,
                           Backend* backend) {
  for (const int64_t rows : {0, 1, 5, 64}) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      ReduceCase c;
      c.rows = rows;
      c.cols = 96;
      c.keep = EveryoneKeeps(world->size(), rows);
      c.partial_dtype = dtype;
      c.normed_dtype = dtype;
      CheckReduce(world, backend, c);
    }
  }
}

void ReduceRowsAsReduceScatter(Communicator* world, ControlChannel*,
                               Backend* backend) {
  for (const int64_t rows : {0, 1, 3, 10, 64}) {
    ReduceCase c;
    c.rows = rows;
    c.cols = 33;
    c.keep = Scatter(world->size(), rows);
    CheckReduce(world, backend, c);
    c.norm = false;
    CheckReduce(world, backend, c);
  }
}

void ReduceRowsKeepsTheRowsOfOnesGroup(Communicator* world, ControlChannel*,
                                       Backend* backend) {
  // Two groups of ranks; both ranks of a group keep the same rows.
  const int64_t bucket = 6;
  ReduceCase c;
  c.rows = 2 * bucket;
  c.cols = 40;
  for (int r = 0; r < world->size(); ++r) {
    const int64_t group = r * 2 / world->size();
    c.keep.push_back({group * bucket, (group + 1) * bucket});
  }
  CheckReduce(world, backend, c);
}

void ReduceRowsScalesByNormGroups(Communicator* world, ControlChannel*,
                                  Backend* backend) {
  for (const int ranks_per_group : {1, 2, world->size()}) {
    if (world->size() % ranks_per_group != 0) continue;
    for (const int64_t rows : {1, 9}) {
      ReduceCase c;
      c.rows = rows;
      c.cols = 48;
      c.ranks_per_group = ranks_per_group;
      c.keep = EveryoneKeeps(world->size(), rows);
      CheckReduce(world, backend, c);
      c.keep = Scatter(world->size(), rows);
      c.partial_dtype = DType::kBFloat16;
      CheckReduce(world, backend, c);
    }
  }
}

// Fast ranks run ahead of slow ones; nothing of one call may reach another.
void CollectivesInARowDoNotMix(Communicator* world, ControlChannel* control,
                               Backend* backend) {
  const int n = world->size();
  for (int64_t round = 0; round < 100; ++round) {
    const int64_t own = world->rank() * 1000 + round;
    DeviceArena arena(backend);
    int64_t* const gathered = arena.Make<int64_t>(n);
    world->AllGather(arena.Put<int64_t>({own}), gathered, sizeof(own));
    std::string plan = world->rank() == 0 ? std::to_string(round) : "";
    ASSERT_TRUE(control->Broadcast(&plan).ok());
    ASSERT_EQ(plan, std::to_string(round));
    int64_t* const swapped = arena.Make<int64_t>(n);
    const std::vector<int64_t> one_each(n, 1);
    world->AllToAll(
        {{arena.Put(std::vector<int64_t>(n, -own)), swapped, sizeof(int64_t)}},
        one_each, one_each);
    const std::vector<int64_t> all = arena.Get(gathered, n);
    const std::vector<int64_t> out = arena.Get(swapped, n);
    for (int r = 0; r < n; ++r) {
      ASSERT_EQ(all[r], r * 1000 + round);
      ASSERT_EQ(out[r], -(r * 1000 + round));
    }
  }
}

void ControlChannelCarriesMessagesOfAnyLength(Communicator* world,
                                              ControlChannel* control,
                                              Backend*) {
  ASSERT_EQ(control->rank(), world->rank());
  ASSERT_EQ(control->size(), world->size());
  for (const size_t length : {0, 1, 5000, 3000000}) {
    const std::string sent(length, static_cast<char>('a' + length % 7));
    std::string message = control->rank() == 0 ? sent : "to be replaced";
    ASSERT_TRUE(control->Broadcast(&message).ok());
    ASSERT_EQ(message, sent);
  }
  const auto text_of = [](int rank) {
    return std::string(rank * 1000, static_cast<char>('a' + rank));
  };
  std::vector<std::string> all = {"to be replaced"};
  ASSERT_TRUE(control->AllGather(text_of(control->rank()), &all).ok());
  ASSERT_EQ(static_cast<int>(all.size()), control->size());
  for (int r = 0; r < control->size(); ++r) ASSERT_EQ(all[r], text_of(r));

  ASSERT_TRUE(control->Gather(text_of(control->rank()), &all).ok());
  if (control->rank() != 0) {
    EXPECT_TRUE(all.empty());
    return;
  }
  ASSERT_EQ(static_cast<int>(all.size()), control->size());
  for (int r = 0; r < control->size(); ++r) ASSERT_EQ(all[r], text_of(r));
}

}  // namespace

const std::vector<CollectiveCase>& CollectiveCases() {
  static const auto* cases = new std::vector<CollectiveCase>{
      {"AllGather", AllGatherBringsAllBlocks},
      {"AllToAll", AllToAllTakesUnevenAndEmptyBlocks},
      {"AllReduce", ReduceRowsAsAllReduce},
      {"ReduceScatter", ReduceRowsAsReduceScatter},
      {"ReduceToGroups", ReduceRowsKeepsTheRowsOfOnesGroup},
      {"GroupScale", ReduceRowsScalesByNormGroups},
      {"Sequence", CollectivesInARowDoNotMix},
      {"Control", ControlChannelCarriesMessagesOfAnyLength},
      {"TokenExchange", TokenExchangeEqualsLocalExperts},
  };
  return *cases;
}

}  // namespace ring
