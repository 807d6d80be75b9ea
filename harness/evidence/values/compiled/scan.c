/* One pass over the values of a tensor: read a part into a buffer, then look at it while it is warm.
 *
 * What is told of every part is what the numpy path tells, by the same integer views of the floats:
 * the largest bits with and without a sign, and a careful look only where those say that something
 * is not finite. Of rows also the sum of squares, a sum of bits, and whether all is zero.
 *
 * Files are read, never mapped: one that shrinks gives an error, and no signal. Values that cross
 * the end of a vector are padded with zeros, which change no sum. All sums over integers are exact;
 * squares are added in float lanes that are spilled into a double every few kilobytes.
 */
#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define WIDTH 64
#elif defined(__AVX2__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

enum { F64, F32, F16, BF16, E4M3, E5M2, E4M3FNUZ, E5M2FNUZ, E8M0 };
enum { GROUP = 16384, SPILL = 8192, ENDED = -1 };

typedef struct {
    uint8_t *buffer;     /* `step` bytes, aligned as numbers are */
    float *squares;      /* one for each row, or NULL where rows are not summed */
    uint64_t *marks;
    uint8_t *zero;
    int64_t offset;      /* first byte in the file */
    int64_t bytes;       /* how many */
    int64_t unit;        /* bytes of a row, or of a few whole values */
    int64_t step;        /* bytes that are read at once: whole units */
    int32_t handle;
    int32_t kind;
    int64_t nonfinite;   /* from here on: what was found */
    int64_t zeros;       /* values whose bits are all zero; counted with the rows */
    int64_t low, high;   /* keys: integers in the order of the values */
    int32_t seen;        /* whether any value is finite; low and high mean nothing before */
    int32_t error;       /* 0, ENDED or an errno */
} Task;

typedef struct {
    uint64_t infinite, sign; /* bits of +infinity or the first NaN; bit of the sign, or 0 */
    int32_t zero_is_nan;     /* negative zero is the one NaN */
    int32_t width;           /* bytes of a value */
} Form;

static const Form FORMS[] = {
    [F64] = {0x7ffull << 52, 1ull << 63, 0, 8}, [F32] = {0x7f800000u, 1u << 31, 0, 4},
    [F16] = {0x7c00, 0x8000, 0, 2},             [BF16] = {0x7f80, 0x8000, 0, 2},
    [E4M3] = {0x7f, 0x80, 0, 1},                [E5M2] = {0x7c, 0x80, 0, 1},
    [E4M3FNUZ] = {0x80, 0x80, 1, 1},            [E5M2FNUZ] = {0x80, 0x80, 1, 1},
    [E8M0] = {0xff, 0, 0, 1},
};

/* ---- extremes ---- */

static inline int64_t make_key(uint64_t bits, uint64_t sign) {
    return bits & sign ? -(int64_t)(bits ^ sign) : (int64_t)bits;
}

static inline void widen(Task *t, int64_t low, int64_t high) {
    if (!t->seen || low < t->low) t->low = low;
    if (!t->seen || high > t->high) t->high = high;
    t->seen = 1;
}

/* A function for each width: what the compiler turns into two vector maxima must know the type. */
#define EXTREMES(NAME, SIGNED, UNSIGNED)                                                           \
    static int NAME##_is_suspect(const UNSIGNED *plain, int64_t count, const Form *f, UNSIGNED most, \
                                 SIGNED top) {                                                     \
        if (f->zero_is_nan) {                                                                      \
            int found = 0;                                                                         \
            for (int64_t i = 0; i < count; i++) found |= plain[i] == (UNSIGNED)f->sign;            \
            return found;                                                                          \
        }                                                                                          \
        if (!f->sign) return most >= f->infinite;                                                  \
        return top >= (int64_t)f->infinite || most >= (f->infinite | f->sign);                     \
    }                                                                                              \
    static void NAME##_carefully(const UNSIGNED *plain, int64_t count, const Form *f, Task *t) {   \
        for (int64_t i = 0; i < count; i++) {                                                      \
            uint64_t bits = plain[i];                                                              \
            int bad = f->zero_is_nan ? bits == f->sign : (bits & ~f->sign) >= f->infinite;         \
            int64_t key = make_key(bits, f->sign);                                                 \
            if (bad) t->nonfinite++;                                                               \
            else widen(t, key, key);                                                               \
        }                                                                                          \
    }                                                                                              \
    static void NAME(const void *data, int64_t bytes, const Form *f, Task *t) {                    \
        const UNSIGNED *plain = data;                                                              \
        const SIGNED *with_sign = data;                                                            \
        int64_t count = bytes / (int64_t)sizeof(UNSIGNED);                                         \
        UNSIGNED most = 0, least = (UNSIGNED)-1;                                                   \
        SIGNED top = (SIGNED)((UNSIGNED)1 << (8 * sizeof(UNSIGNED) - 1));                          \
        for (int64_t i = 0; i < count; i++) {                                                      \
            most = plain[i] > most ? plain[i] : most;                                              \
            top = with_sign[i] > top ? with_sign[i] : top;                                         \
        }                                                                                          \
        if (NAME##_is_suspect(plain, count, f, most, top)) {                                       \
            NAME##_carefully(plain, count, f, t);                                                  \
            return;                                                                                \
        }                                                                                          \
        int both = f->sign && top >= 0 && most >= f->sign;                                         \
        for (int64_t i = 0; !both && i < count; i++) least = plain[i] < least ? plain[i] : least;  \
        int64_t high = !f->sign || top < 0 ? make_key(f->sign ? least : most, f->sign) : top;      \
        widen(t, make_key(f->sign && most >= f->sign ? most : least, f->sign), high);              \
    }

EXTREMES(extremes_1, int8_t, uint8_t)
EXTREMES(extremes_2, int16_t, uint16_t)
EXTREMES(extremes_4, int32_t, uint32_t)
EXTREMES(extremes_8, int64_t, uint64_t)

static void extremes(const void *data, int64_t bytes, const Form *f, Task *t) {
    if (!bytes) return;
    if (f->width == 2) extremes_2(data, bytes, f, t);
    else if (f->width == 4) extremes_4(data, bytes, f, t);
    else if (f->width == 8) extremes_8(data, bytes, f, t);
    else extremes_1(data, bytes, f, t);
}

/* ---- zeros and marks: sums over integers ---- */

/* `LIMIT` vectors are counted before a lane could overflow. */
#define ZEROS(NAME, TYPE, LIMIT)                                                                   \
    static int64_t NAME(const uint8_t *data, int64_t bytes) {                                      \
        typedef TYPE Vector __attribute__((vector_size(WIDTH)));                                   \
        int64_t total = 0, i = 0;                                                                  \
        while (i + WIDTH <= bytes) {                                                               \
            Vector found = {0};                                                                    \
            for (int n = 0; n < (LIMIT) && i + WIDTH <= bytes; n++, i += WIDTH) {                  \
                Vector value;                                                                      \
                memcpy(&value, data + i, WIDTH);                                                   \
                found -= (Vector)(value == 0);                                                     \
            }                                                                                      \
            for (int lane = 0; lane < (int)(WIDTH / sizeof(TYPE)); lane++) total += found[lane];   \
        }                                                                                          \
        for (; i < bytes; i += (int64_t)sizeof(TYPE)) {                                            \
            TYPE value;                                                                            \
            memcpy(&value, data + i, sizeof value);                                                \
            total += value == 0;                                                                   \
        }                                                                                          \
        return total;                                                                              \
    }

ZEROS(zeros_1, uint8_t, 255)
ZEROS(zeros_2, uint16_t, 32768)
ZEROS(zeros_4, uint32_t, 32768)
ZEROS(zeros_8, uint64_t, 32768)

static int64_t count_zeros(const uint8_t *data, int64_t bytes, int32_t width) {
    if (width == 2) return zeros_2(data, bytes);
    if (width == 4) return zeros_4(data, bytes);
    return width == 8 ? zeros_8(data, bytes) : zeros_1(data, bytes);
}

#define MARK(NAME, TYPE)                                                                           \
    static uint64_t NAME(const void *data, int64_t bytes) {                                        \
        const TYPE *words = data;                                                                  \
        int64_t count = bytes / (int64_t)sizeof(TYPE);                                             \
        uint64_t sum = 0;                                                                          \
        for (int64_t i = 0; i < count; i++) sum += words[i];                                       \
        return sum;                                                                                \
    }

MARK(mark_1, uint8_t)
MARK(mark_2, uint16_t)
MARK(mark_4, uint32_t)
MARK(mark_8, uint64_t)

/* The widest words that divide a row. */
static uint64_t mark(const uint8_t *row, int64_t bytes) {
    if (bytes % 8 == 0) return mark_8(row, bytes);
    if (bytes % 4 == 0) return mark_4(row, bytes);
    return bytes % 2 == 0 ? mark_2(row, bytes) : mark_1(row, bytes);
}

/* Whether a row holds nothing but zeros of either sign. */
static int is_zero(const uint8_t *row, int64_t bytes, const Form *f) {
    uint64_t kept = f->zero_is_nan ? ~0ull : ~f->sign;
    for (int64_t i = 0; i < bytes; i += f->width) {
        uint64_t bits = 0;
        memcpy(&bits, row + i, (size_t)f->width); /* little-endian, as the files are */
        if (bits & kept) return 0;
    }
    return 1;
}

/* ---- squares ---- */

typedef uint32_t Words __attribute__((vector_size(WIDTH)));
typedef float Floats __attribute__((vector_size(WIDTH)));
typedef double Doubles __attribute__((vector_size(WIDTH)));

/* Narrow floats whose exponent and fraction stand where float32 has them, without the sign; its
 * bias is larger by `bias`. Subnormal ones are given the hidden bit, and lose it again. */
static inline Floats rebias(Words narrow, uint32_t bias) {
    Words tiny = (Words)((narrow >> 23) == 0);
    Words bits = narrow + (bias << 23) + (tiny & (1u << 23));
    return (Floats)bits - (Floats)(tiny & ((bias + 1) << 23));
}

static inline Floats square(Floats value) { return value * value; }

static inline Floats squares_f32(Words w) { return square((Floats)w); }

static inline Floats squares_bf16(Words w) {
    return square((Floats)(w << 16)) + square((Floats)(w & 0xffff0000u));
}

static inline Floats squares_f16(Words w) {
    return square(rebias((w << 13) & 0x0fffe000u, 112)) +
           square(rebias((w >> 3) & 0x0fffe000u, 112));
}

static inline Floats squares_8(Words w, uint32_t shift, uint32_t kept, uint32_t bias) {
    Floats low = square(rebias((w << shift) & kept, bias)) +
                 square(rebias((w << (shift - 8)) & kept, bias));
    Floats high = square(rebias((w << (shift - 16)) & kept, bias)) +
                  square(rebias((w >> (24 - shift)) & kept, bias));
    return low + high;
}

static inline Floats squares_e4m3(Words w) { return squares_8(w, 20, 0x07f00000u, 120); }
static inline Floats squares_e5m2(Words w) { return squares_8(w, 21, 0x0fe00000u, 112); }
static inline Floats squares_e4m3fnuz(Words w) { return squares_8(w, 20, 0x07f00000u, 119); }
static inline Floats squares_e5m2fnuz(Words w) { return squares_8(w, 21, 0x0fe00000u, 111); }

static inline double add_lanes(Floats sums) {
    float lanes[WIDTH / 4];
    memcpy(lanes, &sums, sizeof sums);
    for (int half = WIDTH / 8; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

#define SQUARES(NAME, ONE)                                                                         \
    static double NAME(const uint8_t *row, int64_t bytes) {                                        \
        double total = 0;                                                                          \
        int64_t i = 0;                                                                             \
        while (i < bytes) {                                                                        \
            int64_t end = bytes - i < SPILL ? bytes : i + SPILL;                                   \
            Floats first = {0}, second = {0};                                                      \
            Words a = {0}, b = {0};                                                                \
            for (; i + 2 * WIDTH <= end; i += 2 * WIDTH) {                                         \
                memcpy(&a, row + i, WIDTH);                                                        \
                memcpy(&b, row + i + WIDTH, WIDTH);                                                \
                first += ONE(a);                                                                   \
                second += ONE(b);                                                                  \
            }                                                                                      \
            while (i < end) {                                                                      \
                int64_t size = end - i < WIDTH ? end - i : WIDTH;                                  \
                Words rest = {0};                                                                  \
                memcpy(&rest, row + i, (size_t)size);                                              \
                first += ONE(rest);                                                                \
                i += size;                                                                         \
            }                                                                                      \
            total += add_lanes(first + second);                                                    \
        }                                                                                          \
        return total;                                                                              \
    }

SQUARES(row_f32, squares_f32)
SQUARES(row_f16, squares_f16)
SQUARES(row_bf16, squares_bf16)
SQUARES(row_e4m3, squares_e4m3)
SQUARES(row_e5m2, squares_e5m2)
SQUARES(row_e4m3fnuz, squares_e4m3fnuz)
SQUARES(row_e5m2fnuz, squares_e5m2fnuz)

static double row_f64(const uint8_t *row, int64_t bytes) {
    Doubles sums = {0};
    double total = 0;
    for (int64_t i = 0; i < bytes; i += WIDTH) {
        Doubles value = {0};
        memcpy(&value, row + i, (size_t)(bytes - i < WIDTH ? bytes - i : WIDTH));
        sums += value * value;
    }
    for (int lane = 0; lane < WIDTH / 8; lane++) total += sums[lane];
    return total;
}

static double sum_squares(const uint8_t *row, int64_t bytes, int32_t kind) {
    switch (kind) {
    case F64: return row_f64(row, bytes);
    case F32: return row_f32(row, bytes);
    case F16: return row_f16(row, bytes);
    case BF16: return row_bf16(row, bytes);
    case E4M3: return row_e4m3(row, bytes);
    case E5M2: return row_e5m2(row, bytes);
    case E4M3FNUZ: return row_e4m3fnuz(row, bytes);
    default: return row_e5m2fnuz(row, bytes);
    }
}

/* ---- the pass ---- */

/* Rows that together stay in the first cache: each thing is looked at in a loop of its own. */
static void sum_rows(const uint8_t *data, int64_t first, int64_t rows, const Form *f, Task *t) {
    t->zeros += count_zeros(data, rows * t->unit, f->width);
    for (int64_t i = 0; i < rows; i++) {
        const uint8_t *row = data + i * t->unit;
        float squares = (float)sum_squares(row, t->unit, t->kind);
        t->squares[first + i] = squares;
        t->marks[first + i] = mark(row, t->unit);
        t->zero[first + i] = squares == 0 && is_zero(row, t->unit, f);
    }
}

static int fill(Task *t, int64_t start, int64_t size) {
    for (int64_t done = 0; done < size;) {
        ssize_t count = pread(t->handle, t->buffer + done, (size_t)(size - done),
                              (off_t)(t->offset + start + done));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            t->error = count ? errno : ENDED;
            return 0;
        }
        done += count;
    }
    return 1;
}

void mudpuppy_scan(Task *t) {
    const Form *f = &FORMS[t->kind];
    int64_t group = t->unit < GROUP ? GROUP / t->unit * t->unit : t->unit;
    t->nonfinite = t->zeros = t->low = t->high = 0;
    t->seen = t->error = 0;
    for (int64_t start = 0; start < t->bytes; start += t->step) {
        int64_t size = t->bytes - start < t->step ? t->bytes - start : t->step;
        if (!fill(t, start, size)) return;
        if (!t->squares) {
            extremes(t->buffer, size, f, t);
            continue;
        }
        for (int64_t done = 0; done < size; done += group) {
            int64_t part = size - done < group ? size - done : group;
            extremes(t->buffer + done, part, f, t);
            sum_rows(t->buffer + done, (start + done) / t->unit, part / t->unit, f, t);
        }
    }
}

/* Bytes of a task, by which the caller knows that both mean the same structure. */
int64_t mudpuppy_task_bytes(void) { return (int64_t)sizeof(Task); }
