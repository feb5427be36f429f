// CHECK for broken promises between our own functions: it prints file, line
// and values and ends the process, which ends the rank and so its group.
// Expected failures (files, network, config, client input) use absl::Status.
#pragma once

#include <functional>
#include <sstream>
#include <string>

namespace ring {

// Hears of a check that fails on this thread, after its line is logged and
// before the process aborts; it may end the process itself. Given back by an
// empty function.
void SetCheckHandler(std::function<void(const std::string& what)> handler);

}  // namespace ring

namespace ring::internal {

// Collects the message of one failed check and aborts when it goes out of
// scope. Used through the macros only.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

// Turns the stream expression into void so that it fits a ?: branch.
struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace ring::internal

#define RING_CHECK(condition)                                              \
  (condition)                                                              \
      ? (void)0                                                            \
      : ::ring::internal::Voidify() &                                      \
            ::ring::internal::CheckFailure(__FILE__, __LINE__, #condition) \
                .stream()

#define RING_CHECK_OP_(a, op, b) \
  RING_CHECK((a)op(b)) << "with " << (a) << " " #op " " << (b) << " "
#define RING_CHECK_EQ(a, b) RING_CHECK_OP_(a, ==, b)
#define RING_CHECK_NE(a, b) RING_CHECK_OP_(a, !=, b)
#define RING_CHECK_LT(a, b) RING_CHECK_OP_(a, <, b)
#define RING_CHECK_LE(a, b) RING_CHECK_OP_(a, <=, b)
#define RING_CHECK_GT(a, b) RING_CHECK_OP_(a, >, b)
#define RING_CHECK_GE(a, b) RING_CHECK_OP_(a, >=, b)

// Checks that cost too much for release builds; on in the sanitizer presets.
#ifdef RING_DCHECKS
#define RING_DCHECK(condition) RING_CHECK(condition)
#else
#define RING_DCHECK(condition) RING_CHECK(true || (condition))
#endif
