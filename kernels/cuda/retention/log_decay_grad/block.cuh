// SPDX-License-Identifier: Apache-2.0
//
// The gradient of log_decay of chunkwise retention, for sm_80 and later.
//
//  1. Equation. With the derivative S'_t = gamma (S'_{t-1} + S_{t-1}) of the state, S'_{-1} = 0,
//       dg = sum_t scale q_t S'_t dout_t^T + <S'_{T-1}, dS>
//     With i, j positions in a chunk of L tokens, and S and S' before it, the chunk adds scale times
//       sum_{j<i} (i-j) gamma^(i-j) (q_i . k_j) (dout_i . v_j) + <S, A> + <S', G>,
//       A = sum_i (i+1) gamma^(i+1) q_i^T dout_i,   G = sum_i gamma^(i+1) q_i^T dout_i
//     and leaves
//       S' = gamma^L (S' + L S) + sum_j (L-1-j) gamma^(L-1-j) k_j^T v_j
//       S  = gamma^L S + sum_j gamma^(L-1-j) k_j^T v_j
//  2. Shapes. q, k [B, T, H, I] and v, dout [B, T, H, O] with any strides of b, t, h that are
//     multiples of 4; states [N, H, I, O] contiguous; parts of dg [N, H, slices] float64. I and O are
//     padded to the tile by zeros in shared memory. dout or dS may be null: zeros.
//  3. CTA -> problem. Block ((n * H) + h) * slices + s owns `slice` columns of O of sequence n, and
//     walks its chunks in order. There are no segments.
//  4. Warp roles. Each warp owns 16 columns of the slice with all of I, or above 64 with a half of it;
//     halves need nothing of each other, since every term is a sum over I. The 16 x 16 tiles of token
//     pairs on or below the diagonal are dealt out to the warps in turn.
//  5. Tile and budget. Two states: 2 inner / 2 / halves fp32 registers a thread (at most 128); operands
//     and results of A and G: 32; a thread's float64 sum. Shared memory: LogDecayTile::shared_bytes (162 KB
//     for 256 x 64 x 64). Bytes of L2 per token-head: 4 I slices + 4 O (10,240 for I = 256, O = 512);
//     wavefronts and mma per chunk: log_decay_model.h.
//  6. Pipeline. All operands of the next chunk are copied while this one is computed.
//  7. Sync contract. One block barrier a chunk: this chunk, and before the first one the weights, have
//     arrived for all threads, and all are done with the last chunk, whose stage is copied into behind
//     it. At the end threads write their sums over the stage that nobody reads since the last chunk's
//     barrier; a block barrier, and warp 0 adds them, then a warp barrier, and its lane 0.
//  8. Numerics. Products of 16-bit operands, sums and states in fp32; a thread's sums of a chunk are
//     added in float64. Rounded to 16 bits: v and dout times their weights, which are at most 1 (those
//     with an age are divided by C, and S' is carried as S' / C), so that nothing overflows in fp16;
//     neither states nor scores are ever 16-bit operands. Powers are fp32 (ex2 of n log2 gamma). Each
//     sum has one order, which depends on the tile alone.
//  9. Tails. Rows past the end are zeros in shared memory (never what the next sequence holds), and
//     the decay uses the true length.
// 10. Writes. Each part once, by one thread. 0 where gamma = 0.
// 11. Parameters. bf16 and fp16; the tile table.
//
// Why this way: <q_i S, dout_i> summed over i is <S, A>, with A in the layout of the state's own
// accumulators. So A and G are computed in pieces as the states' update is, met with the fp32 states in
// registers, and dropped: outputs are never formed, and no state is rounded. That matters here, where S'
// reaches 1 / (1 - gamma) times the state. Loops over tokens are not unrolled: ptxas would overlap their
// turns until registers run out.
#pragma once

#include "kernels/cuda/retention/log_decay_grad/instances.h"
#include "kernels/cuda/retention/segments.cuh"
#include "kernels/cuda/retention/tile.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kTile>
class LogDecayBlock {
  static constexpr LogDecayTile kShape = kLogDecayTiles[kTile];
  static constexpr int kInner = kShape.inner, kSlice = kShape.slice, kChunk = kShape.chunk;
  static constexpr int kThreads = kShape.threads(), kWarps = kThreads / 32;
  static constexpr int kColumnWarps = kSlice / 16, kOwnInner = kInner / kShape.halves();
  static constexpr int kRowTiles = kChunk / 16;  // of 16 tokens
  // Shared memory: stages of q, k, v and dout; weights.
  static constexpr int kInnerRow = kInner * 2, kSliceRow = kSlice * 2;
  static constexpr int kKeys = kChunk * kInnerRow, kValues = 2 * kKeys;
  static constexpr int kGrads = kValues + kChunk * kSliceRow;
  static constexpr int kStage = kGrads + kChunk * kSliceRow;
  static constexpr int kWeights = 2 * kStage;
  static_assert(kWeights + 6 * kChunk * 4 == kShape.shared_bytes());
  static_assert(kThreads * 8 <= kStage);  // what the threads' sums are written over

 public:
  // `wide`: copies of 16 bytes (log_decay_wide), else of 8.
  RETNET_DEVICE LogDecayBlock(const LogDecayParams& params, bool wide, unsigned char* shared)
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
    if (Decay(p_.log_decay_ptr[head_]).forget) {
      if (threadIdx.x == 0) grads_.log_decay_ptr[blockIdx.x] = 0;
      return;
    }
    const bool outputs = grads_.out.ptr != nullptr, end = grads_.final_state_ptr != nullptr;
    store_weights(Decay(p_.log_decay_ptr[head_]));
    load_state();
    if (length_ > 0) load_chunk(0, 0);
    double total = 0;
    for (int start = 0; start < length_; start += kChunk) {
      const int length = prim::min(kChunk, length_ - start);
      const int stage = start / kChunk % 2;
      const bool last = start + kChunk >= length_;
      // What follows from these, powers and addresses, is worked out in each chunk: kept from one to
      // the next it would take more registers than there are.
      lane_ = prim::opaque(lane_);
      warp_ = prim::opaque(warp_);
      head_ = prim::opaque(head_);
      batch_ = prim::opaque(batch_);
      column_ = prim::opaque(column_);
      const Decay decay(p_.log_decay_ptr[head_]);
      prim::cp_async_wait<0>();
      prim::sync_block();
      if (!last) load_chunk(start + kChunk, stage ^ 1);
      if (outputs) total += sum_pairs(stage, decay) + kChunk * sum_states(stage);
      const float share = static_cast<float>(length) / kChunk;
      decay_states(decay.power_minus_one(length), share);
      add_values(stage, length);
    }
    total *= static_cast<double>(p_.scale);
    if (end) total += kChunk * sum_end();
    store_total(total, (length_ + kChunk - 1) / kChunk % 2);
  }

 private:
  RETNET_DEVICE uint32_t slices() const {
    return static_cast<uint32_t>((p_.outer + kSlice - 1) / kSlice);
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
    load<kInner>(at(stage, kKeys), p_.key, start, 0, p_.inner);
    load<kSlice>(at(stage, kValues), p_.value, start, column_, p_.outer);
    if (grads_.out.ptr != nullptr) {
      load<kInner>(at(stage, 0), p_.readout, start, 0, p_.inner);
      load<kSlice>(at(stage, kGrads), grads_.out, start, column_, p_.outer);
    }
    prim::cp_async_commit();
  }
  RETNET_DEVICE uint32_t at(int stage, int offset) const {
    return prim::smem_u32(shared_) + stage * kStage + offset;
  }

  // Of each position i three pairs of weights, gamma^n and n / C gamma^n: with n = i + 1, as the state
  // is read out; with n = L - 1 - i, as a value enters it, for a full chunk and for the last one. 0
  // past its end.
  RETNET_DEVICE void store_weights(const Decay& decay) const {
    auto* weights = reinterpret_cast<float*>(shared_ + kWeights);
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kChunk; i += kThreads) {
      const int set = i / kChunk, position = i % kChunk;
      const int length = set == 1 ? kChunk : length_ % kChunk;
      const int n = set == 0 ? position + 1 : length - 1 - position;
      const float power = n >= 0 ? decay.power(static_cast<float>(n)) : 0.0f;
      weights[2 * set * kChunk + position] = power;
      weights[(2 * set + 1) * kChunk + position] = power * (static_cast<float>(n) / kChunk);
    }
  }

  // Of an accumulator: row of elements 0, 1 (8 more: 2, 3), column of elements 0, 2 (1 more: 1, 3).
  RETNET_DEVICE int lane_row() const { return static_cast<int>(lane_ / 4); }
  RETNET_DEVICE int lane_pair() const { return static_cast<int>(lane_ % 4 * 2); }
  // The warp's columns of the slice, by 16, and its first row of I.
  RETNET_DEVICE int column_warp() const { return static_cast<int>(warp_ % kColumnWarps); }
  RETNET_DEVICE int first_inner() const {
    return static_cast<int>(warp_ / kColumnWarps) * kOwnInner;
  }

  // Calls f(n, e, an element of `states` [N, H, I, O]) for those of this head at state_[n][e].
  RETNET_DEVICE void for_each_element(const float* states, const auto& f) const {
    const auto inner = static_cast<uint32_t>(p_.inner), outer = static_cast<uint32_t>(p_.outer);
    // Not kept from the start to the end of the sequence: registers are short.
    states += static_cast<int64_t>(prim::opaque(blockIdx.x) / slices()) * p_.inner * p_.outer;
    uint32_t i = first_inner() + lane_pair();
    const uint32_t o = column_ + 16 * column_warp() + lane_row();
    uint32_t offset = i * outer + o;
    RETNET_UNROLL
    for (int n = 0; n < kOwnInner / 8; ++n, i += 8, offset += 8 * outer) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const bool inside = i + e % 2 < inner && o + e / 2 * 8 < outer;
        if (inside) f(n, e, states[offset + e % 2 * outer + e / 2 * 8]);
      }
    }
  }

  RETNET_DEVICE void load_state() {
    RETNET_UNROLL
    for (int n = 0; n < kOwnInner / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) state_[n][e] = derivative_[n][e] = 0;
    }
    if (p_.initial_state_ptr == nullptr) return;
    for_each_element(p_.initial_state_ptr,
                     [&](int n, int e, float value) { state_[n][e] = value; });
  }

  // <S' / C, dS>, this thread's part.
  RETNET_DEVICE float sum_end() const {
    float sum = 0;
    for_each_element(grads_.final_state_ptr,
                     [&](int n, int e, float value) { sum += derivative_[n][e] * value; });
    return sum;
  }

  // d[16 rows of a, 16 rows of b] = a b^T, over kColumns columns, from the 16-row tiles `row` and `key`.
  template <int kColumns>
  RETNET_DEVICE void multiply(float (&d)[2][4], uint32_t a, int row, uint32_t b, int key) const {
    const uint32_t sA = a + row * 16 * kColumns * 2 + swizzled<kColumns>(lane_ % 16, lane_ / 16);
    const uint32_t sB =
        b + key * 16 * kColumns * 2 + swizzled<kColumns>(lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
    RETNET_UNROLL
    for (int e = 0; e < 4; ++e) d[0][e] = d[1][e] = 0;
    RETNET_UNROLL_BY(4)
    for (int k = 0; k < kColumns / 16; ++k) {
      uint32_t rows[4], keys[4];
      prim::ldmatrix_x4(rows, step_columns(sA, k));
      prim::ldmatrix_x4(keys, step_columns(sB, k));
      prim::mma<kDtype>(d[0], rows, keys[0], keys[1]);
      prim::mma<kDtype>(d[1], rows, keys[2], keys[3]);
    }
  }

  // Of pairs of tokens in the chunk, this thread's: sum (i-j) gamma^(i-j) (q_i . k_j) (dout_i . v_j).
  RETNET_DEVICE float sum_pairs(int stage, const Decay& decay) const {
    float sum = 0;
    for (int tile = static_cast<int>(warp_); tile < kRowTiles * (kRowTiles + 1) / 2;
         tile += kWarps) {
      int row = 0, first = 0;  // tiles are counted along rows, row by row
      while (tile > first + row) first += ++row;
      const int key = tile - first;
      float score[2][4], grad[2][4];
      multiply<kInner>(score, at(stage, 0), row, at(stage, kKeys), key);
      multiply<kSlice>(grad, at(stage, kGrads), row, at(stage, kValues), key);
      const int distance = 16 * (row - key) + lane_row() - lane_pair();
      RETNET_UNROLL
      for (int x = 0; x < 2; ++x) {
        RETNET_UNROLL
        for (int e = 0; e < 4; ++e) {
          const float n = static_cast<float>(distance + (e / 2 * 8 - 8 * x - e % 2));
          const float weight = n * decay.power(n);
          sum += n > 0 ? weight * (score[x][e] * grad[x][e]) : 0.0f;
        }
      }
    }
    return sum;
  }

  // The A operands of 16 columns by tokens 16 k .. 16 k + 15 of the chunk, at `from` plus the lane's
  // part, times either weight of `set`.
  RETNET_DEVICE void load_weighted(uint32_t (&plain)[4], uint32_t (&aged)[4], uint32_t from, int k,
                                   int set) const {
    uint32_t c[4];
    prim::ldmatrix_x4_t(c, from + k * 16 * kSliceRow);
    const unsigned char* weights =
        shared_ + kWeights + (2 * set * kChunk + 16 * k + lane_pair()) * 4;
    weigh_fragment<kDtype>(plain, c, weights);
    weigh_fragment<kDtype>(aged, c, weights + kChunk * 4);
  }
  // Where a lane reads of the warp's columns of v and dout, and of its rows of I of q and k.
  RETNET_DEVICE uint32_t column_fragment() const {
    return swizzled<kSlice>(lane_ / 16 * 8 + lane_ % 8, 2 * column_warp() + lane_ / 8 % 2);
  }
  RETNET_DEVICE uint32_t inner_fragment() const {
    return first_inner() * 2 + swizzled<kInner>(lane_ % 16, lane_ / 16);
  }

  // <S, A / C> + <S' / C, G>, this thread's part: a sum over tokens, 16 at a time.
  RETNET_DEVICE float sum_states(int stage) const {
    const uint32_t sQ = at(stage, 0) + inner_fragment();
    const uint32_t sG = at(stage, kGrads) + column_fragment();
    float sum[4] = {};
    RETNET_UNROLL_BY(1)
    for (int k = 0; k < kRowTiles; ++k) {
      uint32_t plain[4], aged[4];
      load_weighted(plain, aged, sG, k, 0);
      RETNET_UNROLL
      for (int n = 0; n < kOwnInner / 16; ++n) {
        uint32_t b[4];
        prim::ldmatrix_x4_t(b, step_columns(sQ, n) + k * 16 * kInnerRow);
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) {
          float of_state[4] = {}, of_derivative[4] = {};
          prim::mma<kDtype>(of_state, aged, b[2 * x], b[2 * x + 1]);
          prim::mma<kDtype>(of_derivative, plain, b[2 * x], b[2 * x + 1]);
          RETNET_UNROLL
          for (int e = 0; e < 4; ++e) {
            sum[e] += state_[2 * n + x][e] * of_state[e];
            sum[e] += derivative_[2 * n + x][e] * of_derivative[e];
          }
        }
      }
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // S' / C = gamma^L (S' / C + share S) and S = gamma^L S, with share = L / C.
  RETNET_DEVICE void decay_states(float minus_one, float share) {
    RETNET_UNROLL
    for (int n = 0; n < kOwnInner / 8; ++n) {
      RETNET_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float sum = derivative_[n][e] + share * state_[n][e];
        derivative_[n][e] = sum + sum * minus_one;
        state_[n][e] += state_[n][e] * minus_one;
      }
    }
  }

  // S += k^T (weight_j v_j), and S' / C with the other weight.
  RETNET_DEVICE void add_values(int stage, int length) {
    const uint32_t sK = at(stage, kKeys) + inner_fragment();
    const uint32_t sV = at(stage, kValues) + column_fragment();
    const int set = length == kChunk ? 1 : 2;
    RETNET_UNROLL_BY(1)
    for (int k = 0; k < kRowTiles; ++k) {
      uint32_t plain[4], aged[4];
      load_weighted(plain, aged, sV, k, set);
      RETNET_UNROLL
      for (int n = 0; n < kOwnInner / 16; ++n) {
        uint32_t b[4];
        prim::ldmatrix_x4_t(b, step_columns(sK, n) + k * 16 * kInnerRow);
        RETNET_UNROLL
        for (int x = 0; x < 2; ++x) {
          prim::mma<kDtype>(state_[2 * n + x], plain, b[2 * x], b[2 * x + 1]);
          prim::mma<kDtype>(derivative_[2 * n + x], aged, b[2 * x], b[2 * x + 1]);
        }
      }
    }
  }

  // Adds the threads' sums, in order, and stores the block's. `stage`: that which is free.
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
    grads_.log_decay_ptr[blockIdx.x] = total;
  }

  const ChunkwiseParams& p_;
  const ChunkwiseGradients& grads_;
  const bool wide_;
  unsigned char* const shared_;
  int first_, length_;  // the sequence's first token, and how many it has
  uint32_t column_;     // of O, where the slice starts
  uint32_t batch_, head_, warp_, lane_;

  // S^T and S'^T / C: accumulators of 16 columns of O by 8 rows of I.
  float state_[kOwnInner / 8][4], derivative_[kOwnInner / 8][4];
};

}  // namespace retnet::kernels::cuda
