// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace retnet::simt {

// Code addresses are kept in 32 bits, as the distance from the start of the image. 0 means none.
using Pc = uint32_t;
Pc to_pc(const void* return_address);

// Returns file:line of the statement of the kernel, past the primitives that are inlined into it.
std::string location(Pc pc);

// Returns whether both are copies of one source statement. The compiler may duplicate code.
bool same_instruction(Pc a, Pc b);

// Returns whether an address is inside the image, which is the program or shared library that holds the
// kernels. It has code and constants.
bool in_image(uintptr_t address, size_t bytes);

}  // namespace retnet::simt
