#include "coordinator/request_table.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"

namespace ring {

bool RequestTable::Insert(uint64_t id, std::string name,
                          std::shared_ptr<Request> request) {
  if (!by_name_.emplace(name, id).second) return false;
  Named named;
  named.entry.request = std::move(request);
  named.name = std::move(name);
  const bool inserted = by_id_.emplace(id, std::move(named)).second;
  RING_CHECK(inserted) << "request number " << id << " is used twice";
  waiting_.push_back(id);
  return true;
}

RequestTable::Entry* RequestTable::Find(uint64_t id) {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? nullptr : &it->second.entry;
}

RequestTable::Entry* RequestTable::FindByName(absl::string_view name) {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : Find(it->second);
}

RequestTable::Entry* RequestTable::FirstWaiting() {
  return waiting_.empty() ? nullptr : Find(waiting_.front());
}

void RequestTable::AssignFirst(int64_t group) {
  RING_CHECK(!waiting_.empty());
  Find(waiting_.front())->group = group;
  waiting_.pop_front();
}

bool RequestTable::Erase(uint64_t id) {
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return false;
  if (it->second.entry.group == 0) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), id));
  }
  by_name_.erase(it->second.name);
  by_id_.erase(it);
  return true;
}

std::vector<uint64_t> RequestTable::OfGroup(int64_t group) const {
  std::vector<uint64_t> ids;
  for (const auto& [id, named] : by_id_) {
    if (named.entry.group == group) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<uint64_t> RequestTable::All() const {
  std::vector<uint64_t> ids;
  for (const auto& [id, named] : by_id_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace ring
