// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace retnet::simt {

// Code addresses are kept in 32 bits: the distance from the start of the image. 0 is none.
using Pc = uint32_t;
Pc to_pc(const void* return_address);

// file:line of the kernel's statement, past the primitives that are inlined into it.
std::string location(Pc pc);

// Whether both are copies of one source statement: the compiler may duplicate code.
bool same_instruction(Pc a, Pc b);

// Inside the image, which is the program or shared library that holds the kernels: code and constants.
bool in_image(uintptr_t address, size_t bytes);

}  // namespace retnet::simt
