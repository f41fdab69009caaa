// SPDX-License-Identifier: Apache-2.0
//
// The allocator itself is the CPU's (machine/memory.cpp).
#pragma once

namespace c10::cuda {

enum class CaptureStatus : int { None = 0, Active = 1, Invalidated = 2 };

/// Returns the status of the current stream.
CaptureStatus currentStreamCaptureStatusMayInitCtx();

}  // namespace c10::cuda
