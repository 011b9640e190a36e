#include "vlkv/pick.h"

#include "core/check.h"

namespace vlkv {

void validate(const PickParams& p) {
  const Check check("pick");
  check.range("batch", p.batch, 0, 1 << 20);
  check.range("vocab", p.vocab, 1, kLargestDim);
  if (p.batch == 0) return;
  check.require(p.logits != nullptr, "logits is null");
  check.require(p.token != nullptr, "token is null");
  check.require(p.best != nullptr, "best is null");
}

}  // namespace vlkv
