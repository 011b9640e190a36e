// The interpreter itself: steps against what PTX says of them, and every kernel's text is read.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "cuda/emulation.h"
#include "cuda/ptx/thread.h"

namespace vlkv::ptx {
namespace {

std::vector<std::string> built() {
  std::vector<std::string> paths;
  std::stringstream listed(VLKV_PTX_FILES);
  for (std::string path; std::getline(listed, path, '|');) paths.push_back(path);
  return paths;
}

// Runs one thread of a kernel of these instructions with a parameter of 64 bytes; %rd1 is its address in
// memory.
std::vector<uint64_t> ran(const std::string& body, const std::vector<uint64_t>& given = {}) {
  const auto path = std::filesystem::temp_directory_path() / ("vlkv_" + std::to_string(getpid()) + ".ptx");
  std::ofstream(path)
      << ".visible .entry test(\n .param .align 8 .b8 test_param_0[8]\n)\n.maxntid 32, 1, 1\n{\n"
      << " .shared .align 16 .b8 tile[64];\n ld.param.u64 %rd1, [test_param_0];\n"
      << body << "\n ret;\n}\n";
  Program program({path.string()});
  const Kernel& kernel = program.kernel("test");
  std::filesystem::remove(path);
  std::vector<uint64_t> memory(given);
  memory.resize(8);
  const uint64_t* const at = memory.data();
  std::vector<char> shared(kernel.shared_bytes);
  Thread thread{kernel, reinterpret_cast<const char*>(&at), shared.data(), {}};
  thread.registers.assign(static_cast<size_t>(kernel.registers), ~uint64_t{0});
  while (thread.next < static_cast<int64_t>(kernel.instructions.size())) {
    const Instruction& now = kernel.instructions[static_cast<size_t>(thread.next++)];
    if (now.predicate >= 0 && (thread.registers[static_cast<size_t>(now.predicate)] != 0) == now.negated)
      continue;
    thread.now = &now;
    now.step(thread, now);
  }
  return memory;
}

TEST(Ptx, EveryKernelIsRead) {
  Program program(built());
  const auto names = program.names();
  // Score 8 + 8 + 3, Evict 5 + 3 + 6, Attend 20 + 2 + 1, MoveSlots, Pick, Draw: as in
  // tests/cuda/test_resources.py
  EXPECT_EQ(names.size(), 59U);
  for (const std::string& name : names) {
    const Kernel& kernel = program.kernel(name);
    EXPECT_GT(kernel.instructions.size(), 10U) << name;
    EXPECT_GE(kernel.threads, 32) << name;
  }
}

TEST(Ptx, Integers) {
  const auto got = ran(R"(
    mov.u32 %r1, -7;  mov.u32 %r2, 3;
    shr.s32 %r3, %r1, 1;     st.global.u32 [%rd1], %r3;
    shr.u32 %r4, %r1, 28;    st.global.u32 [%rd1+4], %r4;
    div.s32 %r5, %r1, %r2;   st.global.u32 [%rd1+8], %r5;
    shl.b32 %r6, %r2, 40;    st.global.u32 [%rd1+12], %r6;
    cvt.s64.s32 %rd2, %r1;   st.global.u64 [%rd1+16], %rd2;
    cvt.u64.u32 %rd3, %r1;   st.global.u64 [%rd1+24], %rd3;
    mul.hi.s32 %r7, %r1, 1000000000; st.global.u32 [%rd1+32], %r7;
    mul.wide.u32 %rd4, %r1, %r1;     st.global.u64 [%rd1+40], %rd4;
    mov.b64 {%r8, %r9}, %rd2;        mov.b64 %rd5, {%r9, %r8};
    st.global.u64 [%rd1+48], %rd5;)");
  EXPECT_EQ(static_cast<uint32_t>(got[0]), static_cast<uint32_t>(-4));
  EXPECT_EQ(got[0] >> 32, 15U);
  EXPECT_EQ(got[1], static_cast<uint32_t>(-2));  // and 0: shifted out
  EXPECT_EQ(got[2], static_cast<uint64_t>(-7));
  EXPECT_EQ(got[3], uint64_t{4294967289});
  EXPECT_EQ(static_cast<uint32_t>(got[4]), static_cast<uint32_t>(-2));
  EXPECT_EQ(got[5], uint64_t{4294967289} * uint64_t{4294967289});
  EXPECT_EQ(got[6], (uint64_t{4294967289} << 32) | 0xffffffffU);
}

TEST(Ptx, BitsFloat64AndComparisonsWithNaN) {
  const auto got = ran(R"(
    mov.u32 %r1, 0x12345678;  mov.u32 %r2, 0xffffffff;
    bfi.b32 %r3, %r1, %r2, 8, 16;   st.global.u32 [%rd1], %r3;
    bfi.b32 %r4, %r1, %r2, 0, 32;   st.global.u32 [%rd1+4], %r4;
    mov.u64 %rd2, 1;  mov.u64 %rd3, 0;
    bfi.b64 %rd4, %rd2, %rd3, 63, 1;  st.global.u64 [%rd1+8], %rd4;
    mov.f32 %f1, 0f7FC00000;  mov.f32 %f2, 0fC0600000;
    setp.geu.f32 %p1, %f1, %f2;  selp.u32 %r5, 1, 0, %p1;  st.global.u32 [%rd1+16], %r5;
    setp.ltu.f32 %p2, %f2, %f2;  selp.u32 %r6, 1, 0, %p2;  st.global.u32 [%rd1+20], %r6;
    cvt.rzi.s64.f32 %rd5, %f2;   st.global.u64 [%rd1+24], %rd5;
    cvt.f64.f32 %fd1, %f2;  mul.f64 %fd2, %fd1, %fd1;  cvt.rzi.u64.f64 %rd6, %fd2;
    st.global.u64 [%rd1+32], %rd6;   st.global.f64 [%rd1+40], %fd2;)");
  EXPECT_EQ(got[0], (uint64_t{0x12345678} << 32) | 0xff5678ffU);
  EXPECT_EQ(got[1], uint64_t{1} << 63);
  EXPECT_EQ(got[2], 1U);
  EXPECT_EQ(got[3], static_cast<uint64_t>(-3));
  EXPECT_EQ(got[4], 12U);
  EXPECT_EQ(got[5], 0x4028800000000000U);
}

TEST(Ptx, FloatsAndNaN) {
  const auto got = ran(R"(
    mov.f32 %f1, 0f7FC00000;  mov.f32 %f2, 0f40400000;
    max.f32 %f3, %f1, %f2;    st.global.f32 [%rd1], %f3;
    setp.leu.f32 %p1, %f1, %f2;  selp.u32 %r1, 1, 0, %p1;  st.global.u32 [%rd1+4], %r1;
    setp.lt.f32 %p2, %f1, %f2;   selp.u32 %r2, 1, 0, %p2;  st.global.u32 [%rd1+8], %r2;
    setp.ne.f32 %p3, %f1, %f2;   selp.u32 %r3, 1, 0, %p3;  st.global.u32 [%rd1+12], %r3;
    fma.rn.f32 %f4, %f2, %f2, 0fC1100000;  st.global.f32 [%rd1+16], %f4;
    cvt.rn.bf16x2.f32 %r4, %f2, %f4;       st.global.u32 [%rd1+20], %r4;
    ex2.approx.ftz.f32 %f5, 0fC3000000;    st.global.f32 [%rd1+24], %f5;
    neg.f32 %f6, %f2;                      st.global.f32 [%rd1+28], %f6;)");
  EXPECT_EQ(got[0], (uint64_t{1} << 32) | 0x40400000U);
  EXPECT_EQ(got[1], 0U);
  EXPECT_EQ(got[2], uint64_t{0x40400000} << 32);
  EXPECT_EQ(got[3], uint64_t{0xc0400000} << 32);
}

TEST(Ptx, PredicatesBranchesAndVectors) {
  const auto got = ran(R"(
    mov.u32 %r1, 0;  mov.u32 %r2, 0;
$L__BB0_1:
    add.s32 %r2, %r2, %r1;  add.s32 %r1, %r1, 1;
    setp.lt.s32 %p1, %r1, 5;
    @%p1 bra $L__BB0_1;
    @!%p1 add.s32 %r2, %r2, 100;
    mov.u32 %r3, tile;
    st.shared.v2.f32 [%r3+8], {0f3F800000, 0f40000000};
    ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3];
    st.global.v4.u32 [%rd1], {%r2, %r6, %r7, %r4};)",
                       {9, 9});
  EXPECT_EQ(static_cast<uint32_t>(got[0]), 110U);
  EXPECT_EQ(got[0] >> 32, 0x3f800000U);
  EXPECT_EQ(got[1], 0x40000000U);
}

TEST(PtxDeathTest, RefusesWhatADeviceWould) {
  EXPECT_DEATH(ran("ld.global.u64 %rd2, [%rd1+4];"), "not aligned");
  EXPECT_DEATH(ran("mov.u32 %r1, tile;\n ld.shared.f32 %f1, [%r1+64];"), "outside its memory");
  EXPECT_DEATH(ran("ld.param.u64 %rd2, [test_param_0+8];"), "outside its memory");
  EXPECT_DEATH(ran("mov.u32 %r1, 0;\n div.u32 %r2, %r1, %r1;"), "divides by 0");
  EXPECT_DEATH(ran("sin.approx.f32 %f1, %f2;"), "no step for sin.approx.f32");
  EXPECT_DEATH(ran("bra $L__BB0_9;"), "no label");
}

}  // namespace
}  // namespace vlkv::ptx
