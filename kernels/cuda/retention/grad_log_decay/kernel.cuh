// SPDX-License-Identifier: Apache-2.0
//
// The gradient of log_decay of chunkwise retention, for sm_80 and later.
//
//  1. Equation. With the derivative S'_t = gamma (S'_{t-1} + S_{t-1}) of the state, S'_{-1} = 0,
//       grad_log_decay = sum_t scale q_t S'_t grad_out_t^T + <S'_{T-1}, grad_final_state>
//     With i, j positions in a chunk of L tokens, and S and S' before it, the chunk adds scale times
//       sum_{j<i} (i-j) gamma^(i-j) (q_i . k_j) (grad_out_i . v_j) + <S, A> + <S', G>,
//       A = sum_i (i+1) gamma^(i+1) q_i^T grad_out_i,   G = sum_i gamma^(i+1) q_i^T grad_out_i
//     and leaves
//       S' = gamma^L (S' + L S) + sum_j (L-1-j) gamma^(L-1-j) k_j^T v_j
//       S  = gamma^L S + sum_j gamma^(L-1-j) k_j^T v_j
//  2. Shapes. q, k [B, T, H, Dk] and v, grad_out [B, T, H, Dv] with any strides of b, t, h that are
//     multiples of 4; states [N, H, Dk, Dv] contiguous; parts of the gradient [N, H, slices] float64. Zeros
//     in shared memory pad Dk and Dv to the tile. If grad_out or grad_final_state is null, it stands for
//     zeros.
//  3. CTA -> problem. Block ((n * H) + h) * slices + s owns `slice` columns of Dv of sequence n, and walks
//     its chunks in order. There are no segments.
//  4. Warp roles. Each warp owns 16 columns of the slice with all of Dk, or above 64 with a half of it. The
//     halves need nothing of each other, because every term is a sum over Dk. The warps take the 16 x 16
//     tiles of token pairs on or below the diagonal in turn.
//  5. Tile and budget. A thread has 2 Dk / 2 / halves float32 registers of two states (at most 128), 32 of
//     operands and results of A and G, and a float64 sum. A block has GradLogDecayTile::shared_bytes of
//     shared memory (162 KB for 256 x 64 x 64). A token and head takes 4 Dk slices + 4 Dv bytes of L2
//     (10,240 for Dk = 256, Dv = 512). cost_model.h has the wavefronts and mma of a chunk.
//  6. Pipeline. All operands of the next chunk are copied while this one is computed.
//  7. Sync contract. There is one block barrier a chunk. At it, this chunk has arrived for all threads (for
//     the first chunk, the weights too), and all are done with the last chunk, whose stage is overwritten
//     after it. At the end threads write their sums over the stage that nobody has read since the barrier
//     of the last chunk. After a block barrier warp 0 adds them. After a warp barrier its lane 0 adds the
//     rest.
//  8. Numerics. Operands have 16 bits, and products, sums and states are float32. The sums of a thread over a
//     chunk are added in float64. Only v and grad_out times their weights are rounded to 16 bits. The
//     weights are at most 1 (those with an age are divided by C, and S' is carried as S' / C), so that
//     nothing overflows in float16. States and scores are never 16-bit operands. Powers are float32 (ex2 of n
//     log2 gamma). Each sum has one order, which depends only on the tile.
//  9. Tails. Rows past the end are zeros in shared memory (never what the next sequence holds), and the
//     decay uses the true length.
// 10. Writes. Each part is written once, by one thread. It is 0 if gamma = 0.
// 11. Parameters. Each dtype (bfloat16, float16) and tile of the table has an instance.
//
// Why this way: <q_i S, grad_out_i> summed over i is <S, A>, with A in the layout of the accumulators of
// the state. So A and G are computed in pieces, like the update of the states. Each piece is multiplied by
// the float32 states in registers and dropped. Outputs are never formed, and no state is rounded. That matters
// here, because S' reaches 1 / (1 - gamma) times the state. Loops over tokens are not unrolled, because
// ptxas would overlap their turns until registers run out.
#pragma once

#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/retention/decay.cuh"
#include "kernels/cuda/retention/grad_log_decay/launch.h"
#include "kernels/cuda/retention/segments.cuh"
#include "kernels/cuda/retention/tile.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kTile>
class GradLogDecayBlock {
  static constexpr GradLogDecayTile kShape = kGradLogDecayTiles[kTile];
  static constexpr int kHeadDimQk = kShape.head_dim_qk, kSlice = kShape.slice,
                       kChunk = kShape.chunk;
  static constexpr int kThreads = kShape.threads(), kWarps = kThreads / 32;
  static constexpr int kColumnWarps = kSlice / 16, kOwnHeadDimQk = kHeadDimQk / kShape.halves();
  static constexpr int kRowTiles = kChunk / 16;  // of 16 tokens
  // Shared memory: stages of q, k, v and grad_out; weights.
  static constexpr int kRowBytesQk = kHeadDimQk * 2, kRowBytesV = kSlice * 2;
  static constexpr int kOffsetK = kChunk * kRowBytesQk, kOffsetV = 2 * kOffsetK;
  static constexpr int kOffsetGradOut = kOffsetV + kChunk * kRowBytesV;
  static constexpr int kStage = kOffsetGradOut + kChunk * kRowBytesV;
  static constexpr int kOffsetWeights = 2 * kStage;
  static_assert(kOffsetWeights + 6 * kChunk * 4 == kShape.shared_bytes());
  static_assert(kThreads * 8 <= kStage);  // what the threads' sums are written over

 public:
  // If `wide`, copies have 16 bytes (grad_log_decay_wide), else 8.
  RETNET_DEVICE GradLogDecayBlock(const GradLogDecayParams& params, bool wide,
                                  unsigned char* shared)
      : p_(params.forward), grads_(params.gradients), wide_(wide), shared_(shared) {
    const uint32_t heads = static_cast<uint32_t>(p_.heads);
    const uint32_t sequence_and_head = blockIdx.x / slices();
    const uint32_t sequence = sequence_and_head / heads;
    column_ = (blockIdx.x - sequence_and_head * slices()) * kSlice;
    const Segment whole = find_segment(p_, static_cast<int>(sequence), 0);
    batch_ = static_cast<uint32_t>(whole.batch);
    first_ = whole.start;
    length_ = whole.length;
    warp_ = threadIdx.x / 32;
    lane_ = threadIdx.x % 32;
    head_ = sequence_and_head - sequence * heads;
  }

  RETNET_DEVICE void run() {
    if (Decay(p_.log_decay_ptr[head_]).gamma_is_zero) {
      if (threadIdx.x == 0) grads_.grad_log_decay_ptr[blockIdx.x] = 0;
      return;
    }
    const bool has_grad_out = grads_.grad_out.ptr != nullptr;
    const bool has_grad_final_state = grads_.grad_final_state_ptr != nullptr;
    store_weights(Decay(p_.log_decay_ptr[head_]));
    load_state();
    if (length_ > 0) load_chunk(0, 0);
    double total = 0;
    for (int start = 0; start < length_; start += kChunk) {
      const int length = prim::min(kChunk, length_ - start);
      const int stage = start / kChunk % 2;
      const bool last = start + kChunk >= length_;
      // Powers and addresses follow from these and are computed again in each chunk. Kept from one chunk
      // to the next, they would take more registers than there are.
      lane_ = prim::opaque(lane_);
      warp_ = prim::opaque(warp_);
      head_ = prim::opaque(head_);
      batch_ = prim::opaque(batch_);
      column_ = prim::opaque(column_);
      const Decay decay(p_.log_decay_ptr[head_]);
      prim::cp_async_wait<0>();
      prim::sync_block();
      if (!last) load_chunk(start + kChunk, stage ^ 1);
      if (has_grad_out) total += sum_pairs(stage, decay) + kChunk * sum_states(stage);
      const float share = static_cast<float>(length) / kChunk;
      decay_states(decay.power_minus_one(length), share);
      update_states(stage, length);
    }
    total *= static_cast<double>(p_.scale);
    if (has_grad_final_state) total += kChunk * sum_final_state();
    store_total(total, (length_ + kChunk - 1) / kChunk % 2);
  }

 private:
  RETNET_DEVICE uint32_t slices() const {
    return static_cast<uint32_t>((p_.head_dim_v + kSlice - 1) / kSlice);
  }

  // Copies positions start .. start + kChunk - 1 of the sequence, kColumns columns from `column`.
  template <int kColumns>
  RETNET_DEVICE void load(uint32_t dst, const RetentionOperand& operand, int start, uint32_t column,
                          int64_t columns) const {
    const char* src = static_cast<const char*>(operand.ptr) +
                      2 * (batch_ * operand.stride_b + head_ * operand.stride_h + column);
    load_tile<kColumns, kChunk, kThreads>(dst, src, operand.stride_t, first_ + start, 1,
                                          length_ - start, static_cast<int>(columns - column),
                                          32 * warp_ + lane_, wide_);
  }

  RETNET_DEVICE void load_chunk(int start, int stage) const {
    load<kHeadDimQk>(at(stage, kOffsetK), p_.k, start, 0, p_.head_dim_qk);
    load<kSlice>(at(stage, kOffsetV), p_.v, start, column_, p_.head_dim_v);
    if (grads_.grad_out.ptr != nullptr) {
      load<kHeadDimQk>(at(stage, 0), p_.q, start, 0, p_.head_dim_qk);
      load<kSlice>(at(stage, kOffsetGradOut), grads_.grad_out, start, column_, p_.head_dim_v);
    }
    prim::cp_async_commit();
  }
  RETNET_DEVICE uint32_t at(int stage, int offset) const {
    return prim::smem_u32(shared_) + stage * kStage + offset;
  }

  // Each position i has three pairs of weights, gamma^n and n / C gamma^n. The first is for grad_out_i,
  // with n = i + 1. The others are for v_i in a full chunk and in the last one, with n = L - 1 - i. They
  // are 0 past its end.
  RETNET_DEVICE void store_weights(const Decay& decay) const {
    auto* weights = reinterpret_cast<float*>(shared_ + kOffsetWeights);
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kChunk; i += kThreads) {
      const int set = i / kChunk, position = i % kChunk;
      const int length = set == 1 ? kChunk : length_ % kChunk;
      const int n = set == 0 ? position + 1 : length - 1 - position;
      const float power = n >= 0 ? decay.power(static_cast<float>(n)) : 0.0f;
      weights[2 * set * kChunk + position] = power;
      weights[(2 * set + 1) * kChunk + position] = power * (static_cast<float>(n) / kChunk);
    }
  }

  // lane_row is the row of elements 0 and 1 of an accumulator; 2 and 3 lie 8 rows below. lane_pair is the
  // column of elements 0 and 2; 1 and 3 lie one to the right.
  RETNET_DEVICE int lane_row() const { return static_cast<int>(lane_ / 4); }
  RETNET_DEVICE int lane_pair() const { return static_cast<int>(lane_ % 4 * 2); }
  // The warp's columns of the slice, by 16, and its first row of Dk.
  RETNET_DEVICE int column_warp() const { return static_cast<int>(warp_ % kColumnWarps); }
  RETNET_DEVICE int first_row_qk() const {
    return static_cast<int>(warp_ / kColumnWarps) * kOwnHeadDimQk;
  }

  // Calls f(n, e, an element of `states` [N, H, Dk, Dv]) for those of this head at state_[n][e].
  RETNET_DEVICE void for_each_element(const float* states, const auto& f) const {
    const auto head_dim_qk = static_cast<uint32_t>(p_.head_dim_qk);
    const auto head_dim_v = static_cast<uint32_t>(p_.head_dim_v);
    // The address is not kept from the start to the end of the sequence, because registers are scarce.
    states +=
        static_cast<int64_t>(prim::opaque(blockIdx.x) / slices()) * p_.head_dim_qk * p_.head_dim_v;
    uint32_t row = first_row_qk() + lane_pair();
    const uint32_t column = column_ + 16 * column_warp() + lane_row();
    uint32_t offset = row * head_dim_v + column;
    RETNET_UNROLL
    for (int n = 0; n < kOwnHeadDimQk / 8; ++n, row += 8, offset += 8 * head_dim_v) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool inside = row + e % 2 < head_dim_qk && column + e / 2 * 8 < head_dim_v;
        if (inside) f(n, e, states[offset + e % 2 * head_dim_v + e / 2 * 8]);
      }
    }
  }

  RETNET_DEVICE void load_state() {
    RETNET_UNROLL
    for (int n = 0; n < kOwnHeadDimQk / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] = derivative_[n][e] = 0;
    }
    if (p_.initial_state_ptr == nullptr) return;
    for_each_element(p_.initial_state_ptr,
                     [&](int n, int e, float state) { state_[n][e] = state; });
  }

  // Returns the part of this thread of <S' / C, grad_final_state>.
  RETNET_DEVICE float sum_final_state() const {
    float sum = 0;
    for_each_element(grads_.grad_final_state_ptr,
                     [&](int n, int e, float grad) { sum += derivative_[n][e] * grad; });
    return sum;
  }

  // product[16 rows of a, 16 rows of b] = a b^T over kColumns columns. The rows of a are those of its
  // 16-row tile `row_tile`, and those of b of its tile `column_tile`.
  template <int kColumns>
  RETNET_DEVICE void multiply(float (&product)[2][4], uint32_t a, int row_tile, uint32_t b,
                              int column_tile) const {
    const uint32_t from_a =
        a + row_tile * 16 * kColumns * 2 + swizzled<kColumns>(lane_ % 16, lane_ / 16);
    const uint32_t from_b = b + column_tile * 16 * kColumns * 2 +
                            swizzled<kColumns>(lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
    RETNET_UNROLL
    for (int e = 0; e < 4; ++e) product[0][e] = product[1][e] = 0;
    RETNET_UNROLL_BY(4)
    for (int d = 0; d < kColumns / 16; ++d) {
      uint32_t rA[4], rB[4];
      prim::ldmatrix_x4(rA, advance_columns(from_a, d));
      prim::ldmatrix_x4(rB, advance_columns(from_b, d));
      prim::mma<kDtype>(product[0], rA, rB[0], rB[1]);
      prim::mma<kDtype>(product[1], rA, rB[2], rB[3]);
    }
  }

  // Returns the sum of (i-j) gamma^(i-j) (q_i . k_j) (grad_out_i . v_j) over the pairs of tokens of the
  // chunk that this thread has.
  RETNET_DEVICE float sum_pairs(int stage, const Decay& decay) const {
    float sum = 0;
    for (int tile = static_cast<int>(warp_); tile < kRowTiles * (kRowTiles + 1) / 2;
         tile += kWarps) {
      int row = 0, first = 0;  // tiles are counted along rows, row by row
      while (tile > first + row) first += ++row;
      const int column = tile - first;
      float score[2][4], grad_score[2][4];
      multiply<kHeadDimQk>(score, at(stage, 0), row, at(stage, kOffsetK), column);
      multiply<kSlice>(grad_score, at(stage, kOffsetGradOut), row, at(stage, kOffsetV), column);
      const int distance = 16 * (row - column) + lane_row() - lane_pair();
      RETNET_UNROLL
      for (int x = 0; x < 2; ++x) {
        RETNET_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float n = static_cast<float>(distance + (e / 2 * 8 - 8 * x - e % 2));
          const float weight = n * decay.power(n);
          sum += n > 0 ? weight * (score[x][e] * grad_score[x][e]) : 0.0f;
        }
      }
    }
    return sum;
  }

  // Loads v or grad_out of tokens 16 j .. 16 j + 15 of the chunk as operand a, times either weight of
  // `set`. `from` is the address of 16 columns plus the part of the lane.
  RETNET_DEVICE void load_weighted(uint32_t (&plain)[4], uint32_t (&aged)[4], uint32_t from, int j,
                                   int set) const {
    uint32_t fragment[4];
    prim::ldmatrix_x4_t(fragment, from + j * 16 * kRowBytesV);
    const unsigned char* weights =
        shared_ + kOffsetWeights + (2 * set * kChunk + 16 * j + lane_pair()) * 4;
    weigh_fragment<kDtype>(plain, fragment, weights);
    weigh_fragment<kDtype>(aged, fragment, weights + kChunk * 4);
  }
  // Where a lane reads in the columns of v and grad_out that its warp has, and in its rows of Dk of q and
  // k.
  RETNET_DEVICE uint32_t v_fragment() const {
    return swizzled<kSlice>(lane_ / 16 * 8 + lane_ % 8, 2 * column_warp() + lane_ / 8 % 2);
  }
  RETNET_DEVICE uint32_t qk_fragment() const {
    return first_row_qk() * 2 + swizzled<kHeadDimQk>(lane_ % 16, lane_ / 16);
  }

  // Returns the part of this thread of <S, A / C> + <S' / C, G>, a sum over tokens, 16 at a time.
  RETNET_DEVICE float sum_states(int stage) const {
    const uint32_t from_q = at(stage, 0) + qk_fragment();
    const uint32_t from_grad_out = at(stage, kOffsetGradOut) + v_fragment();
    float sum[4] = {};
    RETNET_UNROLL_BY(1)
    for (int j = 0; j < kRowTiles; ++j) {
      uint32_t plain[4], aged[4];
      load_weighted(plain, aged, from_grad_out, j, 0);
      RETNET_UNROLL
      for (int d = 0; d < kOwnHeadDimQk / 16; ++d) {
        uint32_t rQ[4];
        prim::ldmatrix_x4_t(rQ, advance_columns(from_q, d) + j * 16 * kRowBytesQk);
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) {
          float of_state[4] = {}, of_derivative[4] = {};
          prim::mma<kDtype>(of_state, aged, rQ[2 * x], rQ[2 * x + 1]);
          prim::mma<kDtype>(of_derivative, plain, rQ[2 * x], rQ[2 * x + 1]);
          RETNET_UNROLL
          for (int e = 0; e < 4; ++e) {
            sum[e] += state_[2 * d + x][e] * of_state[e];
            sum[e] += derivative_[2 * d + x][e] * of_derivative[e];
          }
        }
      }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // S' / C = gamma^L (S' / C + share S) and S = gamma^L S, with share = L / C.
  RETNET_DEVICE void decay_states(float power_minus_one, float share) {
    RETNET_UNROLL
    for (int n = 0; n < kOwnHeadDimQk / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float sum = derivative_[n][e] + share * state_[n][e];
        derivative_[n][e] = sum + sum * power_minus_one;
        state_[n][e] += state_[n][e] * power_minus_one;
      }
    }
  }

  // S += k^T (weight_j v_j), and S' / C with the other weight.
  RETNET_DEVICE void update_states(int stage, int length) {
    const uint32_t from_k = at(stage, kOffsetK) + qk_fragment();
    const uint32_t from_v = at(stage, kOffsetV) + v_fragment();
    const int set = length == kChunk ? 1 : 2;
    RETNET_UNROLL_BY(1)
    for (int j = 0; j < kRowTiles; ++j) {
      uint32_t plain[4], aged[4];
      load_weighted(plain, aged, from_v, j, set);
      RETNET_UNROLL
      for (int d = 0; d < kOwnHeadDimQk / 16; ++d) {
        uint32_t rK[4];
        prim::ldmatrix_x4_t(rK, advance_columns(from_k, d) + j * 16 * kRowBytesQk);
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) {
          prim::mma<kDtype>(state_[2 * d + x], plain, rK[2 * x], rK[2 * x + 1]);
          prim::mma<kDtype>(derivative_[2 * d + x], aged, rK[2 * x], rK[2 * x + 1]);
        }
      }
    }
  }

  // Adds the sums of the threads in order, and stores the sum of the block. `stage` is the one that is
  // free.
  RETNET_DEVICE void store_total(double total, int stage) const {
    auto* sums = reinterpret_cast<double*>(shared_ + stage * kStage);
    sums[threadIdx.x] = total;
    prim::sync_block();
    if (threadIdx.x >= 32) return;
    for (int w = 1; w < kWarps; ++w) total += sums[32 * w + threadIdx.x];
    sums[threadIdx.x] = total;
    prim::sync_warp();
    if (threadIdx.x != 0) return;
    for (int i = 1; i < 32; ++i) total += sums[i];
    grads_.grad_log_decay_ptr[blockIdx.x] = total;
  }

  const ChunkwiseParams& p_;
  const ChunkwiseGradients& grads_;
  const bool wide_;
  unsigned char* const shared_;
  int first_, length_;  // the first token of the sequence, and how many it has
  uint32_t column_;     // of Dv, where the slice starts
  uint32_t batch_, head_, warp_, lane_;

  // S^T and S'^T / C: accumulators of 16 columns of Dv by 8 rows of Dk.
  float state_[kOwnHeadDimQk / 8][4], derivative_[kOwnHeadDimQk / 8][4];
};

template <DType kDtype, int kTile>
__global__ void __launch_bounds__(kGradLogDecayTiles[kTile].threads(), 1)
    grad_log_decay_kernel(const GradLogDecayParams p, bool wide) {
  if constexpr (prim::kHasAsyncMma) {
    RETNET_DYNAMIC_SHARED(shared);
    GradLogDecayBlock<kDtype, kTile>(p, wide, shared).run();
  }
}

template <DType kDtype, int kTile>
cudaError_t grad_log_decay_launch(const GradLogDecayParams& params, int64_t slices,
                                  cudaStream_t stream) {
  constexpr GradLogDecayTile kShape = kGradLogDecayTiles[kTile];
  const ChunkwiseParams& p = params.forward;
  const auto blocks = static_cast<unsigned>(p.sequences * p.heads * slices);
  return prim::launch(grad_log_decay_kernel<kDtype, kTile>, dim3(blocks), kShape.threads(),
                      kShape.shared_bytes(), stream, params,
                      grad_log_decay_wide(p, params.gradients.grad_out));
}

}  // namespace retnet::kernels::cuda
