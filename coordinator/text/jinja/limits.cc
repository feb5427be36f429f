#include "coordinator/text/jinja/limits.h"

#include "absl/strings/str_cat.h"

namespace ring::jinja {

absl::Status Budget::Spend(int64_t work) {
  if (work > work_left_) {
    work_left_ = 0;
    return absl::ResourceExhaustedError(absl::StrCat(
        "rendering takes more than ", limits_.work, " units of work"));
  }
  work_left_ -= work;
  return absl::OkStatus();
}

absl::Status Budget::SpendString(size_t bytes) {
  if (bytes > static_cast<size_t>(limits_.string_bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a text of ", bytes, " bytes is longer than ", limits_.string_bytes));
  }
  return Spend(static_cast<int64_t>(bytes / 32));
}

absl::Status Budget::SpendItems(size_t items) {
  constexpr int64_t kWorkPerItem = 16;
  if (items > static_cast<size_t>(limits_.work / kWorkPerItem)) {
    return Spend(limits_.work + 1);
  }
  return Spend(static_cast<int64_t>(items) * kWorkPerItem);
}

}  // namespace ring::jinja
