// SPDX-License-Identifier: Apache-2.0
//
// Column sums of a float32 matrix. They are the second half of a gradient that many blocks contribute to.
//
//  1. Equation. out[c] = sum over r of in[r, c].
//  2. Shapes. in [rows, columns] contiguous, out [columns].
//  3. CTA -> problem. A block of 512 threads takes 32 columns at a time: the groups b, b + grid, ...
//  4. Warp roles. Warp w sums the rows w, w + 16, ..., and lane l sums column l. Warp 0 adds the 16 sums.
//  5. Tile and budget. A thread has one accumulator, and a block 2 KB of shared memory. The matrix is read
//     once.
//  6. Pipeline. There is none. Unrolling gives each thread four loads in flight.
//  7. Sync contract. Every warp writes its row of sPartial. After a barrier warp 0 reads them. Another
//     barrier precedes the next group of columns. All threads take every turn of the loop.
//  8. Numerics. Sums are float32. They take the rows of a warp in ascending order, then the warps in ascending
//     order.
//  9. Tails. Columns past the end are neither loaded nor stored. There may be any number of rows.
// 10. Writes. Each out[c] is written once. The same matrix gives the same bits.
// 11. Parameters. The kernel takes any size and runs on any architecture.
//
// Why this way: there are hundreds of partial rows and hundreds of columns, so warps must share the rows to
// have enough loads in flight. Atomics would not be deterministic.

#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/prim/prim.cuh"

namespace retnet::kernels::cuda {
namespace {

constexpr int kColumnSumWarps = 16;

__global__ void __launch_bounds__(kColumnSumWarps * 32) column_sum_kernel(const ColumnSumParams p) {
  RETNET_SHARED(float, sPartial, [kColumnSumWarps][32]);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * 32; first < p.columns;
       first += static_cast<int64_t>(gridDim.x) * 32) {
    const int64_t column = first + lane;
    float sum = 0;
    if (column < p.columns) {
      RETNET_UNROLL_BY(4)
      for (int64_t r = warp; r < p.rows; r += kColumnSumWarps) {
        sum += p.in_ptr[r * p.columns + column];
      }
    }
    sPartial[warp][lane] = sum;
    prim::sync_block();
    if (warp == 0 && column < p.columns) {
      float total = 0;
      RETNET_UNROLL
      for (int w = 0; w < kColumnSumWarps; ++w) total += sPartial[w][lane];
      p.out_ptr[column] = total;
    }
    prim::sync_block();
  }
}

}  // namespace

cudaError_t launch_column_sum(const ColumnSumParams& params, cudaStream_t stream) {
  if (params.columns == 0) return cudaSuccess;
  constexpr int64_t kMaxBlocks = 1 << 20;  // the loop over columns covers the rest
  const int64_t groups = (params.columns + 31) / 32;
  return prim::launch(column_sum_kernel,
                      static_cast<unsigned>(groups < kMaxBlocks ? groups : kMaxBlocks),
                      kColumnSumWarps * 32, stream, params);
}

}  // namespace retnet::kernels::cuda
