// A fiber: a stack that can be left in the middle of a function and entered again later.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emulator {

#if defined(__x86_64__)
struct Context {
  void* stack_pointer;
};

// Saves the registers a called function must preserve, changes the stack, restores them there.
// swapcontext would do, but it makes a system call each time and is ten times slower.
extern "C" void emulator_switch(void** save, void* load) __attribute__((visibility("hidden")));
asm(R"(
  .text
  .hidden emulator_switch
  .globl emulator_switch
  .type emulator_switch, @function
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size emulator_switch, .-emulator_switch
)");

inline void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  auto** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t(15));
  *--top = nullptr;  // the return address of `entry`, which never returns; keeps the ABI's alignment
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

inline void switch_context(Context& from, Context& to) {
  emulator_switch(&from.stack_pointer, to.stack_pointer);
}

#else
}  // namespace emulator
#include <ucontext.h>
namespace emulator {

struct Context {
  ucontext_t state;
};

inline void prepare(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }
#endif

}  // namespace emulator
