/* Packed 4-bit rows become floats: value = table[nibble] * scale in fp32, rounded once.
 *
 * One source for every format: a format is its table of 16 values, the kind of its scales and its
 * block size. A block has but 16 different values, so they are made first, and what is left for
 * every element is a look-up that neither multiplies nor rounds. Byte j of a row holds column 2j in
 * its low half and column 2j + 1 in its high half.
 *
 * Vector code is chosen when this is compiled (-march=native); every path gives the same bits.
 * The threads are those of the OpenMP runtime that the caller already has: its GOMP_parallel is
 * handed in, because a second runtime would spin against the first.
 */
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define WIDE 1
#include <immintrin.h>
#elif defined(__SSSE3__)
#include <immintrin.h>
#endif

enum { F32 = 0, F16 = 1, BF16 = 2, E8M0 = 3 };
enum { LINE = 64, AHEAD = 12, NARROW = 1024 };

typedef struct {
    const uint8_t *qweight;
    const void *scales;
    void *out;
    const float *table;
    int64_t q_stride;      /* bytes from one row to the next */
    int64_t scale_stride;  /* scales from one row to the next */
    int64_t out_stride;    /* elements from one row to the next */
    int64_t rows;
    int64_t columns;
    int64_t block;
    int32_t scale_kind;
    int32_t out_kind;      /* F32, F16 or BF16 */
    int64_t grain;         /* rows that a thread takes at a time */
    int64_t next;          /* first row that no thread has taken */
} Task;

typedef void (*Parallel)(void (*work)(void *), void *data, unsigned threads, unsigned flags);

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, exact */
        float value = (float)fraction * as_float(0x33800000u);
        return as_float(as_bits(value) | sign);
    }
    uint32_t high = exponent == 31 ? 0xffu : exponent + 112;
    return as_float(sign | (high << 23) | (fraction << 13));
}

static inline float load_scale(const void *scales, int64_t index, int32_t kind) {
    if (kind == F32) return ((const float *)scales)[index];
    if (kind == F16) return half_to_float(((const uint16_t *)scales)[index]);
    if (kind == BF16) return as_float((uint32_t)((const uint16_t *)scales)[index] << 16);
    uint32_t exponent = ((const uint8_t *)scales)[index]; /* 2^(exponent - 127), 255 is NaN */
    if (exponent == 255) return as_float(0x7fc00000u);
    return as_float(exponent ? exponent << 23 : 0x00400000u);
}

/* Round to nearest, ties to even. */
static inline uint32_t to_bf16(float value) {
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded;
}

static inline uint16_t to_half(float value) {
    uint32_t bits = as_bits(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (size >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* 65536 and more */
    if (size < 0x38800000u) { /* below 2^-14: adding 0.5 leaves a multiple of 2^-24, rounded */
        uint32_t sum = as_bits(as_float(size) + as_float(0x3f000000u));
        return (uint16_t)(sign | (sum - 0x3f000000u));
    }
    uint32_t rounded = size + 0xfffu + ((size >> 13) & 1u) - (112u << 23);
    return (uint16_t)(sign | (rounded >> 13)); /* may carry into infinity, as it should */
}

/* The 16 values of a block. The loops are kept from being unrolled before they become vectors. */
static inline void fill_16(uint16_t *values, const float *table, float scale, int32_t kind) {
#ifdef WIDE
    __m512 product = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(scale));
    __m256i rounded;
    if (kind == BF16) {
        __m512i bits = _mm512_castps_si512(product), one = _mm512_set1_epi32(1);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        __mmask16 none = _mm512_cmp_ps_mask(product, product, _CMP_UNORD_Q);
        sum = _mm512_mask_mov_epi32(sum, none, _mm512_set1_epi32(0x7fc00000));
        rounded = _mm512_cvtepi32_epi16(_mm512_srli_epi32(sum, 16));
    } else {
        rounded = _mm512_cvtps_ph(product, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    _mm256_storeu_si256((__m256i *)values, rounded);
#else
    uint32_t wide[16];
    if (kind == BF16) {
#pragma GCC unroll 1
        for (int i = 0; i < 16; i++) wide[i] = to_bf16(table[i] * scale);
    } else {
        for (int i = 0; i < 16; i++) wide[i] = to_half(table[i] * scale);
    }
#pragma GCC unroll 1
    for (int i = 0; i < 16; i++) values[i] = (uint16_t)wide[i];
#endif
}

/* Two values for each of `count` bytes. */
static inline void expand_16(const uint8_t *q, int64_t count, const uint16_t *values,
                             uint16_t *out) {
    int64_t j = 0;
#ifdef WIDE
    __m512i look = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)values));
    for (; j + 16 <= count; j += 16) {
        /* The table stands there twice and the look-up reads five bits: no mask is needed. */
        __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(q + j)));
        index = _mm512_or_si512(index, _mm512_slli_epi32(index, 12));
        _mm512_storeu_si512(out + 2 * j, _mm512_permutexvar_epi16(index, look));
    }
#elif defined(__SSSE3__)
    __m128i first = _mm_loadu_si128((const __m128i *)values);
    __m128i second = _mm_loadu_si128((const __m128i *)(values + 8));
    __m128i byte = _mm_set1_epi16(0xff), nibble = _mm_set1_epi8(15);
    __m128i low = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(second, byte));
    __m128i high = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(second, 8));
    for (; j + 16 <= count; j += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(q + j));
        __m128i even = _mm_and_si128(bytes, nibble);
        __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble);
        __m128i a = _mm_unpacklo_epi8(even, odd), b = _mm_unpackhi_epi8(even, odd);
        __m128i al = _mm_shuffle_epi8(low, a), ah = _mm_shuffle_epi8(high, a);
        __m128i bl = _mm_shuffle_epi8(low, b), bh = _mm_shuffle_epi8(high, b);
        __m128i *to = (__m128i *)(out + 2 * j);
        _mm_storeu_si128(to + 0, _mm_unpacklo_epi8(al, ah));
        _mm_storeu_si128(to + 1, _mm_unpackhi_epi8(al, ah));
        _mm_storeu_si128(to + 2, _mm_unpacklo_epi8(bl, bh));
        _mm_storeu_si128(to + 3, _mm_unpackhi_epi8(bl, bh));
    }
#endif
    for (; j < count; j++) {
        out[2 * j] = values[q[j] & 15];
        out[2 * j + 1] = values[q[j] >> 4];
    }
}

static inline void expand_32(const uint8_t *q, int64_t count, const float *values, float *out) {
    int64_t j = 0;
#ifdef WIDE
    __m512 look = _mm512_loadu_ps(values);
    for (; j + 8 <= count; j += 8) { /* the look-up reads four bits */
        __m512i index = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)(q + j)));
        index = _mm512_or_si512(index, _mm512_slli_epi64(index, 28));
        _mm512_storeu_ps(out + 2 * j, _mm512_permutexvar_ps(index, look));
    }
#endif
    for (; j < count; j++) {
        out[2 * j] = values[q[j] & 15];
        out[2 * j + 1] = values[q[j] >> 4];
    }
}

/* Columns start to stop of a row; a block may start or end in the middle of a byte. */
static inline void block_16(const uint8_t *q, int64_t start, int64_t stop, const uint16_t *values,
                            uint16_t *out) {
    if (start & 1) {
        out[start] = values[q[start / 2] >> 4];
        start++;
    }
    if (start >= stop) return;
    expand_16(q + start / 2, (stop - start) / 2, values, out + start);
    if (stop & 1) out[stop - 1] = values[q[stop / 2] & 15];
}

static inline void block_32(const uint8_t *q, int64_t start, int64_t stop, const float *values,
                            float *out) {
    if (start & 1) {
        out[start] = values[q[start / 2] >> 4];
        start++;
    }
    if (start >= stop) return;
    expand_32(q + start / 2, (stop - start) / 2, values, out + start);
    if (stop & 1) out[stop - 1] = values[q[stop / 2] & 15];
}

static void row_16(const Task *t, int64_t row, int32_t kind) {
    const uint8_t *q = t->qweight + row * t->q_stride;
    uint16_t *out = (uint16_t *)t->out + row * t->out_stride;
    uint16_t values[16];
    int64_t scale = row * t->scale_stride;
    for (int64_t start = 0; start < t->columns; start += t->block, scale++) {
        int64_t stop = start + t->block < t->columns ? start + t->block : t->columns;
        fill_16(values, t->table, load_scale(t->scales, scale, t->scale_kind), kind);
        block_16(q, start, stop, values, out);
    }
}

static void row_32(const Task *t, int64_t row) {
    const uint8_t *q = t->qweight + row * t->q_stride;
    float *out = (float *)t->out + row * t->out_stride;
    float values[16];
    int64_t scale = row * t->scale_stride;
    for (int64_t start = 0; start < t->columns; start += t->block, scale++) {
        int64_t stop = start + t->block < t->columns ? start + t->block : t->columns;
        float factor = load_scale(t->scales, scale, t->scale_kind);
        for (int i = 0; i < 16; i++) values[i] = t->table[i] * factor;
        block_32(q, start, stop, values, out);
    }
}

/* Some columns of every row lie far apart in memory, and no processor guesses where. */
static inline void fetch_ahead(const Task *t, int64_t row) {
    static const int64_t sizes[] = {4, 2, 2, 1};
    row = row + AHEAD < t->rows ? row + AHEAD : t->rows - 1;
    const uint8_t *q = t->qweight + row * t->q_stride;
    for (int64_t byte = 0; byte < t->columns / 2 + LINE; byte += LINE) __builtin_prefetch(q + byte);
    __builtin_prefetch((const uint8_t *)t->scales + row * t->scale_stride * sizes[t->scale_kind]);
}

static void work(void *data) {
    Task *t = data;
    for (;;) {
        int64_t row = __atomic_fetch_add(&t->next, t->grain, __ATOMIC_RELAXED);
        if (row >= t->rows) return;
        int64_t end = row + t->grain < t->rows ? row + t->grain : t->rows;
        for (; row < end; row++) {
            if (t->columns <= NARROW) fetch_ahead(t, row);
            if (t->out_kind == F32) row_32(t, row);
            else if (t->out_kind == BF16) row_16(t, row, BF16);
            else row_16(t, row, F16);
        }
    }
}

/* Dequantise the rows of a task; `parallel` may be NULL, then one thread does it all. */
void mudpuppy_dequantize(Task *task, Parallel parallel, unsigned threads) {
    task->next = 0;
    if (parallel && threads > 1 && task->rows > task->grain) parallel(work, task, threads, 0);
    else work(task);
}

/* Bytes of a task, by which the caller knows that both mean the same structure. */
int64_t mudpuppy_task_bytes(void) { return (int64_t)sizeof(Task); }
