#include "vlkv/recall.h"

#include <mutex>
#include <unordered_map>

#include "core/check.h"

namespace vlkv {
namespace {

// The stores that exist. Graphs name them by numbers, and a number that a graph makes up finds nothing.
struct Stores {
  std::mutex mutex;
  std::unordered_map<int64_t, std::weak_ptr<const Recall>> of;
  int64_t last = 0;
};

Stores& stores() {
  static auto* const made = new Stores;  // never destroyed: stores may outlive static objects
  return *made;
}

}  // namespace

std::shared_ptr<Recall> Recall::make(const RecallSizes& sizes) {
  const Check check("recall");
  check.range("layers", sizes.layers, 1, 65536);
  check.range("kv_heads", sizes.kv_heads, 1, 65536);
  check.range("head_dim", sizes.head_dim, 1, 4096);
  check.range("page", sizes.page, 1, 1024);
  check.range("pages", sizes.pages, 1, kLargestDim);
  Stores& all = stores();
  const std::lock_guard lock(all.mutex);
  std::shared_ptr<Recall> made(new Recall(sizes, all.last + 1));
  all.of.emplace(made->id(), made);
  ++all.last;
  return made;
}

Recall::~Recall() {
  Stores& all = stores();
  const std::lock_guard lock(all.mutex);
  all.of.erase(id_);
}

std::shared_ptr<const Recall> Recall::find(int64_t id) {
  Stores& all = stores();
  const std::lock_guard lock(all.mutex);
  const auto found = all.of.find(id);
  return found == all.of.end() ? nullptr : found->second.lock();
}

int64_t Recall::bytes() const {
  size_t total = 0;
  for (const Layer& layer : layers_) {
    total += layer.keys.size() + layer.values.size() + layer.bounds.size() * sizeof(uint16_t);
  }
  return static_cast<int64_t>(total);
}

}  // namespace vlkv
