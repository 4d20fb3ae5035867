/* The benchmark's yardstick: the sparse work of one training step, written by hand for AVX-512.
 *
 * Eight registers of 16 floats hold a neuron's row of a batch of 128 while its connections stream by;
 * forward is CSR by output neuron, backward goes by input neuron and yields input gradient, weight
 * gradient and momentum update in one pass. No activation, dropout or loss. Compiled by `peers` when it
 * is timed, never installed, never used for anything else.
 */
#include <immintrin.h>
#include <stdint.h>

#define LANES 16
#define REGISTERS 8
#define BATCH (LANES * REGISTERS)

void forward(int64_t n_out, const int64_t *indptr, const int32_t *indices, const float *weights,
             const float *bias, const float *x, float *z)
{
    for (int64_t j = 0; j < n_out; j++) {
        __m512 acc[REGISTERS];
        for (int r = 0; r < REGISTERS; r++)
            acc[r] = _mm512_set1_ps(bias[j]);
        for (int64_t k = indptr[j]; k < indptr[j + 1]; k++) {
            const float *row = x + (int64_t)indices[k] * BATCH;
            const __m512 w = _mm512_set1_ps(weights[k]);
            for (int r = 0; r < REGISTERS; r++)
                acc[r] = _mm512_fmadd_ps(w, _mm512_loadu_ps(row + r * LANES), acc[r]);
        }
        for (int r = 0; r < REGISTERS; r++)
            _mm512_storeu_ps(z + j * BATCH + r * LANES, acc[r]);
    }
}

void backward(int64_t n_in, const int64_t *indptr, const int32_t *indices, const int32_t *position,
              float *weights, float *velocity, const float *x, const float *dz, float *dx,
              float rate, float momentum, float decay)
{
    for (int64_t i = 0; i < n_in; i++) {
        __m512 acc[REGISTERS], xi[REGISTERS];
        for (int r = 0; r < REGISTERS; r++) {
            acc[r] = _mm512_setzero_ps();
            xi[r] = _mm512_loadu_ps(x + i * BATCH + r * LANES);
        }
        for (int64_t k = indptr[i]; k < indptr[i + 1]; k++) {
            const float *row = dz + (int64_t)indices[k] * BATCH;
            const int64_t p = position[k];
            const __m512 w = _mm512_set1_ps(weights[p]);
            __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
            for (int r = 0; r < REGISTERS; r += 2) {
                const __m512 d0 = _mm512_loadu_ps(row + r * LANES);
                const __m512 d1 = _mm512_loadu_ps(row + (r + 1) * LANES);
                acc[r] = _mm512_fmadd_ps(w, d0, acc[r]);
                acc[r + 1] = _mm512_fmadd_ps(w, d1, acc[r + 1]);
                even = _mm512_fmadd_ps(xi[r], d0, even);
                odd = _mm512_fmadd_ps(xi[r + 1], d1, odd);
            }
            const float g = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
            const float v = momentum * velocity[p] - rate * g;
            velocity[p] = v;
            weights[p] += v - decay * weights[p];
        }
        if (dx)
            for (int r = 0; r < REGISTERS; r++)
                _mm512_storeu_ps(dx + i * BATCH + r * LANES, acc[r]);
    }
}
