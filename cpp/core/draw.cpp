#include "vlkv/draw.h"

#include "core/check.h"

namespace vlkv {

void validate(const DrawParams& p) {
  const Check check("draw");
  check.range("batch", p.batch, 0, 1 << 20);
  check.range("vocab", p.vocab, 1, kMostDrawn);
  if (p.batch == 0) return;
  check.require(p.logits != nullptr, "logits is null");
  check.require(p.settings != nullptr, "settings is null");
  check.require(p.token != nullptr, "token is null");
  check.require(p.best != nullptr, "best is null");
}

}  // namespace vlkv
