/* The trusted caller of candidates. vlkv.tune.toolchain fills in the signature. */
#include <fenv.h>
#include <stdint.h>
#include <time.h>

typedef @RETURNS@ (*function)(@TYPES@);

/* What the calling convention asks a function to keep: some registers, rounding, flags. An assembly candidate may break
   it and still answer right. 1: a register; 2: the rounding or the floating-point mode; 4: the direction flag. */
@RETURNS@ vlkv_call(function f, int *broken@DECLARED@) {
#if defined(__x86_64__)
  register uint64_t k1 __asm__("rbx") = 0x1122334455667788u, k2 __asm__("r12") = 0x2233445566778899u;
  register uint64_t k3 __asm__("r13") = 0x33445566778899aau, k4 __asm__("r14") = 0x445566778899aabbu;
  register uint64_t k5 __asm__("r15") = 0x5566778899aabbccu;
  uint32_t before, after;
  uint64_t flags;
  __asm__ volatile("stmxcsr %0" : "=m"(before));
  __asm__ volatile("" : "+r"(k1), "+r"(k2), "+r"(k3), "+r"(k4), "+r"(k5));
#endif
  int rounding = fegetround();
  @RESULT@f(@PASSED@);
#if defined(__x86_64__)
  __asm__ volatile("" : "+r"(k1), "+r"(k2), "+r"(k3), "+r"(k4), "+r"(k5));
  *broken |= k1 != 0x1122334455667788u || k2 != 0x2233445566778899u || k3 != 0x33445566778899aau ||
             k4 != 0x445566778899aabbu || k5 != 0x5566778899aabbccu;
  __asm__ volatile("stmxcsr %0" : "=m"(after));
  __asm__ volatile("pushfq\n\tpopq %0\n\tcld" : "=r"(flags));
  *broken |= ((before ^ after) & 0xffc0u ? 2 : 0) | (flags & 0x400u ? 4 : 0);
#endif
  *broken |= fegetround() != rounding ? 2 : 0;
  @GIVE@
}

/* Seconds of `count` calls. */
double vlkv_time(function f, long count@DECLARED@) {
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (long n = 0; n < count; ++n) f(@PASSED@);
  clock_gettime(CLOCK_MONOTONIC, &end);
  return (double)(end.tv_sec - begin.tv_sec) + 1e-9 * (double)(end.tv_nsec - begin.tv_nsec);
}
