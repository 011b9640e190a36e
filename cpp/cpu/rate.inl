// The processor's rate. Included after vector.inl, inside the namespace of an instruction set.

static int64_t multiply_adds(int64_t rounds) {
  F acc[kAccumulators];
  for (int i = 0; i < kAccumulators; ++i) acc[i] = splat(static_cast<float>(i));
  F a = splat(0.999F), b = splat(0.001F);
  __asm__ volatile("" : : "m"(a), "m"(b) : "memory");
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < kAccumulators; ++i) acc[i] = acc[i] * a + b;
  }
  F total{};
  for (int i = 0; i < kAccumulators; ++i) total += acc[i];
  __asm__ volatile("" : : "m"(total));
  return rounds * kAccumulators * kLanes * 2;
}
