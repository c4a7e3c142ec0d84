/* Chosen rows and columns of a JPEG, or weighted sums of them, row by row, with the libjpeg that Pillow decodes with.
 *
 * The result must be bit-identical to Pillow's decode, convert("RGB") and resize, and files that Pillow's decoder refuses
 * must be refused. libjpeg decodes, with its defaults, as Pillow has it do (JpegDecode.c). decode() computes no pixel: the
 * caller chooses which rows and columns are kept, and by the strides of its array where they are written. resample()
 * computes what Pillow's filters do (Resample.c): integer sums, rounded to uint8 between the two directions.
 *
 * libjpeg is not linked: bind() finds its functions in the library that Pillow's own module has loaded. One decoder in
 * the process, the same for both ways, and renewed with Pillow. Two versions of libjpeg agree on whole files; on damaged
 * ones they need not.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The interface of libjpeg 6.2, libjpeg-turbo's default and what Pillow's wheels are built with, also where this
 * machine's own headers were made for 8 (Debian and Fedora have 6.2, Ubuntu 8). jpeg_CreateDecompress compares the
 * version and the size of its structure with what it was built for, and bind() asks it. */
#include <jconfig.h>
#undef JPEG_LIB_VERSION
#define JPEG_LIB_VERSION 62
#define JCONFIG_INCLUDED
#include <jpeglib.h>

/* Pillow gives libjpeg a file in pieces of this size (ImageFile.MAXBLOCK), and what lies behind the last piece that
 * was needed for the pixels is never looked at. The same here, or an error there would be found by one and not the
 * other. */
#define PIECE 65536

/* From so many rows of the photo for one of the result, the rows in between are skipped; below, that saves nothing. */
#define SKIP_FROM 2

/* Into a row that begins on a vector's border, libjpeg-turbo's SIMD code writes past the caches (movntdq), and reading
 * the row then costs more than decoding it. So it begins beside one. */
#define OFF_LINE 4

/* Segments before the first scan. clothing_gateway.image.layout has the same limit, and the reason. */
#define MAX_SEGMENTS 1000

/* Segments from the first scan on, of a file in several scans; likewise. */
#define MAX_SCAN_SEGMENTS 1000

/* While all rows are decoded one after another: rows between two looks at the clock. */
#define ROWS_BETWEEN_LOOKS 32

/* A deadline farther away is none. */
#define MAX_SECONDS 1e9

/* Of a JPEG, and of a result. */
#define MAX_SIDE 65535

#define CHANNELS 3
#define PIXEL 4 /* bytes of one in a row of libjpeg's JCS_EXT_RGBX */

/* Fractional bits of a weight: Pillow's, which leaves 8 for the pixel and 2 for sums that leave its range. */
#define WEIGHT_BITS 22
#define ONE (1 << WEIGHT_BITS)
/* A result's weights, without their signs, at most: sums then fit in an int32_t. Lanczos has 1.3 * ONE. */
#define MAX_WEIGHTS (2 * ONE)
/* Bytes of rows that are summed at a time, so that the sums stay in the fastest cache. */
#define BLOCK 1024
/* Rows in memory begin on a border of so many bytes, beside which OFF_LINE puts them. */
#define LINE 32

static struct {
    struct jpeg_error_mgr *(*std_error)(struct jpeg_error_mgr *);
    void (*CreateDecompress)(j_decompress_ptr, int, size_t);
    int (*read_header)(j_decompress_ptr, boolean);
    boolean (*start_decompress)(j_decompress_ptr);
    JDIMENSION (*read_scanlines)(j_decompress_ptr, JSAMPARRAY, JDIMENSION);
    JDIMENSION (*skip_scanlines)(j_decompress_ptr, JDIMENSION);
    boolean (*finish_decompress)(j_decompress_ptr);
    void (*destroy_decompress)(j_decompress_ptr);
    boolean (*resync_to_restart)(j_decompress_ptr, int);
} lib;
static int bound = 0;

static PyObject *BrokenJpeg, *TooManyScans; /* the exceptions */

enum { DONE = 0, BROKEN, TOO_MANY_SCANS, TOO_MANY_SEGMENTS, OUT_OF_TIME };

/* ---- a header ---- */

typedef struct {
    int width, height, components;
    uint64_t memory;
    const unsigned char *scans; /* the first scan's header in a file of several, else NULL */
    Py_ssize_t exif, exif_end;  /* offsets of the first EXIF segment's body and of its end; 0 without one */
    int exif_segments;          /* Pillow joins their bodies */
} Header;

/* ---- weighted sums in one direction ---- */

typedef struct {
    const int32_t *starts;  /* of each result: the first of the photo's rows or columns, ascending */
    const int32_t *weights; /* results x span, in units of 1 / ONE */
    int count, span;        /* count is 0 where nothing is resampled */
} Spans;

static double box(double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double hamming(double x) {
    x = fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    const double angle = x * M_PI;
    return sin(angle) / angle * (0.54f + 0.46f * cos(angle)); /* float's constants, as in Pillow */
}

/* Keys' cubic convolution, a = -0.5. */
static double bicubic(double x) {
    x = fabs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    const double angle = x * M_PI;
    return sin(angle) / angle;
}

static double lanczos(double x) { return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

typedef struct {
    const char *name;
    double (*value)(double);
    double support; /* the distance at which it ends */
} Filter;

static const Filter filters[] = {
    {"box", box, 0.5}, {"bilinear", bilinear, 1.0}, {"hamming", hamming, 1.0}, {"bicubic", bicubic, 2.0}, {"lanczos", lanczos, 3.0}};

typedef struct {
    double centre, width; /* of a filter over the photo's rows or columns */
    int start, end;
} Window;

/* Of a photo's part, which ends nothing: a filter sees the pixels around it. */
typedef struct {
    int photo, start, there, resized; /* pixels of all, before the part, in it, and in the result */
} Part;

static Window window_of(const Filter *filter, const Part *part, int result) {
    const double scale = (double)part->there / part->resized, width = scale < 1.0 ? 1.0 : scale;
    const double reach = filter->support * width;
    Window window = {.centre = part->start + (result + 0.5) * scale, .width = width};
    window.start = (int)(window.centre - reach + 0.5);
    if (window.start < 0) window.start = 0;
    window.end = (int)(window.centre + reach + 0.5);
    if (window.end > part->photo) window.end = part->photo;
    return window;
}

/* One result's weights, ``span`` of them from ``*start``; ``exact`` has the room for as many doubles. */
static void weigh(const Filter *filter, int photo, const Window *window, int span, int32_t *start, int32_t *weights,
                  double *exact) {
    const double inverse = 1.0 / window->width;
    const int count = window->end - window->start;
    double total = 0.0;
    for (int i = 0; i < count; i++) {
        exact[i] = filter->value((i + window->start - window->centre + 0.5) * inverse);
        total += exact[i];
    }
    *start = window->start + span > photo ? photo - span : window->start;
    memset(weights, 0, (size_t)span * sizeof(*weights));
    weights += window->start - *start;
    for (int i = 0; i < count; i++) {
        const double weight = total != 0.0 ? exact[i] / total : exact[i];
        weights[i] = (int32_t)(weight < 0 ? -0.5 + weight * ONE : 0.5 + weight * ONE);
    }
}

static inline JSAMPLE rounded(int32_t sum) {
    sum >>= WEIGHT_BITS;
    return (JSAMPLE)(sum < 0 ? 0 : sum > MAXJSAMPLE ? MAXJSAMPLE : sum);
}

/* A row of results from a row of pixels of one value, or of red, green, blue and one that is not used. */
static void sum_across(const Spans *spans, const JSAMPLE *row, size_t pixel, JSAMPLE *out) {
    const int32_t *weights = spans->weights;
    for (int i = 0; i < spans->count; i++, weights += spans->span, out += pixel) {
        const JSAMPLE *at = row + pixel * (size_t)spans->starts[i];
        int32_t red = ONE / 2, green = ONE / 2, blue = ONE / 2;
        if (pixel == 1) {
            for (int j = 0; j < spans->span; j++) red += at[j] * weights[j];
        } else {
            for (int j = 0; j < spans->span; j++, at += PIXEL) {
                red += at[0] * weights[j];
                green += at[1] * weights[j];
                blue += at[2] * weights[j];
            }
            out[1] = rounded(green);
            out[2] = rounded(blue);
        }
        out[0] = rounded(red);
    }
}

/* A row of results from ``span`` rows, of which ``ring`` holds the photo's row y at y % span. */
static void sum_down(const Spans *spans, int result, const JSAMPLE *ring, size_t stride, size_t bytes, JSAMPLE *out) {
    const int32_t *weights = spans->weights + (size_t)result * (size_t)spans->span;
    for (size_t from = 0; from < bytes; from += BLOCK) {
        const size_t size = bytes - from < BLOCK ? bytes - from : BLOCK;
        int32_t sums[BLOCK];
        for (size_t i = 0; i < size; i++) sums[i] = ONE / 2;
        for (int j = 0; j < spans->span; j++) {
            const JSAMPLE *row = ring + (size_t)((spans->starts[result] + j) % spans->span) * stride + from;
            const int32_t weight = weights[j];
            for (size_t i = 0; i < size; i++) sums[i] += row[i] * weight;
        }
        for (size_t i = 0; i < size; i++) out[from + i] = rounded(sums[i]);
    }
}

/* ---- one decoding ---- */

typedef struct {
    /* The first member, so that libjpeg's pointer to it is a pointer to all. */
    struct jpeg_decompress_struct cinfo;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr source;
    struct jpeg_progress_mgr progress;
    jmp_buf failed; /* with one of the values above */
    char message[JMSG_LENGTH_MAX];
    int max_scans;      /* 0 is no limit */
    int has_deadline;
    int64_t deadline;   /* nanoseconds of CLOCK_MONOTONIC */

    const JOCTET *piece_end; /* what libjpeg may read so far … */
    const JOCTET *end;       /* … and the end of the file */
    int finishing;           /* all pixels are there: what else it reads must be in the last piece */

    char *out;                      /* uint8 or float32, rows x columns x 3; NULL to decode for nothing but the verdict */
    Py_ssize_t strides[3];          /* of rows, columns and channels, in bytes; negative ones turn the result */
    const float (*table)[CHANNELS]; /* of the numbers for each value of red, green and blue, or NULL for uint8 */
    const int32_t *rows, *columns;  /* which of the photo's are taken; its height and width stand for black ones */
    int height, width;              /* of the result */
    int takes_black;                /* a row behind the photo's last */
    JSAMPLE *row;                   /* one of the photo's rows, and a black pixel behind it */
    JSAMPLE *black;                 /* a row of black pixels, where one is taken */
    Spans across, down;             /* of resample(), else empty */
    int down_first;
} Job;

static void fail(j_common_ptr cinfo) {
    Job *job = (Job *)cinfo;
    cinfo->err->format_message(cinfo, job->message);
    longjmp(job->failed, BROKEN);
}

static void fail_with(Job *job, const char *message) {
    snprintf(job->message, sizeof(job->message), "%s", message);
    longjmp(job->failed, BROKEN);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* 20 ns, through the vDSO. */
static void look_at_clock(Job *job) {
    if (job->has_deadline && now() >= job->deadline) longjmp(job->failed, OUT_OF_TIME);
}

/* libjpeg calls it for each row of blocks of each scan of a file in several scans. */
static void monitor(j_common_ptr cinfo) {
    Job *job = (Job *)cinfo;
    if (job->max_scans && job->cinfo.input_scan_number > job->max_scans) longjmp(job->failed, TOO_MANY_SCANS);
    look_at_clock(job);
}

static void keep_quiet(j_common_ptr cinfo) { (void)cinfo; }

static void do_nothing(j_decompress_ptr cinfo) { (void)cinfo; }

static boolean next_piece(j_decompress_ptr cinfo) {
    Job *job = (Job *)cinfo;
    if (job->finishing) return FALSE;
    look_at_clock(job);
    if (job->piece_end == job->end) fail_with(job, "the file is cut off");
    size_t left = (size_t)(job->end - job->piece_end);
    size_t size = left < PIECE ? left : PIECE;
    job->source.next_input_byte = job->piece_end;
    job->source.bytes_in_buffer = size;
    job->piece_end += size;
    return TRUE;
}

static void skip_bytes(j_decompress_ptr cinfo, long count) {
    Job *job = (Job *)cinfo;
    while (count > (long)job->source.bytes_in_buffer) {
        count -= (long)job->source.bytes_in_buffer;
        job->source.next_input_byte += job->source.bytes_in_buffer;
        job->source.bytes_in_buffer = 0;
        if (!next_piece(cinfo)) return;
    }
    if (count > 0) {
        job->source.next_input_byte += count;
        job->source.bytes_in_buffer -= (size_t)count;
    }
}

/* Inlined with constant strides for a plain result, which takes a tenth of the time off a small photo. */
static inline __attribute__((always_inline)) void keep(
    const Job *job, char *out, const Py_ssize_t step, const Py_ssize_t channel, const int grey) {
    const JSAMPLE *const row = job->row;
    const int32_t *columns = job->columns, *const columns_end = columns + job->width;
    const float(*const table)[CHANNELS] = job->table;
    const int green = !grey, blue = 2 * green;
    const size_t pixel_bytes = grey ? 1 : PIXEL;
    if (table) {
        for (; columns < columns_end; out += step) {
            const JSAMPLE *pixel = row + pixel_bytes * (size_t)*columns++;
            *(float *)out = table[pixel[0]][0];
            *(float *)(out + channel) = table[pixel[green]][1];
            *(float *)(out + 2 * channel) = table[pixel[blue]][2];
        }
    } else {
        for (; columns < columns_end; out += step) {
            const JSAMPLE *pixel = row + pixel_bytes * (size_t)*columns++;
            *(JSAMPLE *)out = pixel[0];
            *(JSAMPLE *)(out + channel) = pixel[green];
            *(JSAMPLE *)(out + 2 * channel) = pixel[blue];
        }
    }
}

static void keep_row(const Job *job, int y) {
    const Py_ssize_t step = job->strides[1], channel = job->strides[2], four = sizeof(float);
    char *out = job->out + y * job->strides[0];
    const int grey = job->cinfo.output_components == 1;
    if (grey)
        keep(job, out, step, channel, 1);
    else if (job->table && step == CHANNELS * four && channel == four)
        keep(job, out, CHANNELS * sizeof(float), sizeof(float), 0);
    else
        keep(job, out, step, channel, 0);
}

static void put_row(const Job *job, int y, const JSAMPLE *row, size_t pixel) {
    const size_t green = pixel > 1, blue = 2 * green;
    char *out = job->out + y * job->strides[0];
    for (int x = 0; x < job->width; x++, row += pixel, out += job->strides[1]) {
        *(JSAMPLE *)out = row[0];
        *(JSAMPLE *)(out + job->strides[2]) = row[green];
        *(JSAMPLE *)(out + 2 * job->strides[2]) = row[blue];
    }
}

/* Read on until the photo's row ``wanted`` is in job->row. */
static void read_to(Job *job, int wanted, int skipping) {
    j_decompress_ptr cinfo = &job->cinfo;
    look_at_clock(job);
    if (skipping && wanted > (int)cinfo->output_scanline)
        lib.skip_scanlines(cinfo, (JDIMENSION)wanted - cinfo->output_scanline);
    JSAMPROW row = job->row;
    while ((int)cinfo->output_scanline <= wanted) {
        if (lib.read_scanlines(cinfo, &row, 1) != 1) fail_with(job, "no more rows");
        if (cinfo->output_scanline % ROWS_BETWEEN_LOOKS == 0) look_at_clock(job);
    }
}

/* Whether rows behind a skip are the right ones: in the four samplings that cameras and programs write. Elsewhere
 * jpeg_skip_scanlines loses count where one row of colour stands for several and is not blended with its neighbours: in
 * other samplings, in pictures whose rows of colour have one or two values, in grey files that declare 2x2. */
static int skips_well(j_decompress_ptr cinfo) {
    if (cinfo->num_components != CHANNELS || cinfo->output_width < DCTSIZE) return 0;
    for (int i = 0; i < CHANNELS; i++) {
        const jpeg_component_info *component = &cinfo->comp_info[i];
        int most = i == 0 ? 2 : 1;
        if (component->h_samp_factor > most || component->v_samp_factor > most) return 0;
    }
    return 1;
}

static void keep_rows(Job *job) {
    const int in = (int)job->cinfo.output_height, height = job->out ? job->height : 0;
    const int skipping = in >= SKIP_FROM * (int64_t)height && skips_well(&job->cinfo);
    int before = -1;
    for (int y = 0; y < height; y++) {
        int wanted = job->rows[y];
        if (wanted < in && wanted > before) {
            read_to(job, wanted, skipping);
            before = wanted;
        }
        if (wanted < in) keep_row(job, y);
    }
    /* Black ones last: they take the row's place, and in a turned photo needn't be at the end. */
    JSAMPLE *decoded = job->row;
    job->row = job->black;
    for (int y = 0; y < height; y++)
        if (job->rows[y] == in) keep_row(job, y);
    job->row = decoded;
    /* The last row is always read: skipping past it would let a file pass that ends before it. */
    if (before < in - 1) read_to(job, in - 1, skipping);
}

/* Sum across and down, or down and across, as soon as a result's last row is decoded. */
static void resample_rows(Job *job) {
    j_decompress_ptr cinfo = &job->cinfo;
    const Spans *across = &job->across, *down = &job->down;
    const int in = (int)cinfo->output_height;
    const int skipping = in >= SKIP_FROM * (int64_t)down->count && skips_well(cinfo);
    const size_t pixel = (size_t)cinfo->output_components, wide = cinfo->output_width * pixel;
    const size_t kept = (size_t)across->count * pixel, left = (size_t)across->starts[0] * pixel;
    const size_t needed = ((size_t)across->starts[across->count - 1] + (size_t)across->span) * pixel - left;
    const size_t stride = ((job->down_first ? wide : kept) + OFF_LINE + LINE) / LINE * LINE;
    JSAMPLE *decoded = job->row;
    JSAMPLE *ring = cinfo->mem->alloc_large((j_common_ptr)cinfo, JPOOL_IMAGE, stride * (size_t)down->span);
    JSAMPLE *between = cinfo->mem->alloc_large((j_common_ptr)cinfo, JPOOL_IMAGE, wide > kept ? wide : kept);
    JSAMPLE *result = cinfo->mem->alloc_large((j_common_ptr)cinfo, JPOOL_IMAGE, kept);
    int next = 0;
    for (int y = 0; y < down->count; y++) {
        if (next < down->starts[y]) next = down->starts[y];
        for (; next < down->starts[y] + down->span; next++) {
            JSAMPLE *slot = ring + (size_t)(next % down->span) * stride + OFF_LINE;
            if (job->down_first) job->row = slot;
            read_to(job, next, skipping);
            if (!job->down_first) sum_across(across, job->row, pixel, slot);
        }
        look_at_clock(job);
        if (job->down_first) {
            sum_down(down, y, ring + OFF_LINE + left, stride, needed, between + left);
            sum_across(across, between, pixel, result);
        } else {
            sum_down(down, y, ring + OFF_LINE, stride, kept, result);
        }
        put_row(job, y, result, pixel);
    }
    job->row = decoded;
    if (next < in) read_to(job, in - 1, skipping); /* as in keep_rows */
}

static int u16(const unsigned char *at) { return at[0] << 8 | at[1]; }

/* DONE, or which limit is exceeded by a file from its first scan's header on, as libjpeg meets its segments (jdmarker.c:
 * markers without a length are searched past, also in the restarts' resynchronisation). */
static int count_scans(const unsigned char *at, const unsigned char *end, int max_scans) {
    int scans = 0, segments = 0;
    while (end - at >= 2 && (at = memchr(at, 0xFF, (size_t)(end - at - 1)))) {
        int marker = at[1];
        if (marker == 0 || (marker >= 0xD0 && marker <= 0xD7) || marker == 0xFF) { /* stuffed, restart, fill byte */
            at += marker == 0xFF ? 1 : 2;
            continue;
        }
        if (marker == 0xD9) break;
        if (marker == 0xDA && ++scans > max_scans) return TOO_MANY_SCANS;
        if (++segments > MAX_SCAN_SEGMENTS) return TOO_MANY_SEGMENTS;
        if (marker < 0xC0 || marker == 0xD8) {
            at += 2;
            continue;
        }
        if (end - at < 4) break;
        int length = u16(at + 2);
        if (end - at - 2 < length) break;
        at += 2 + (length < 2 ? 2 : length);
    }
    return DONE;
}

/* All of one decoding: DONE, or the reason, with its text in job->message where it is BROKEN. Python is not touched. */
static int run(Job *job, const unsigned char *data, size_t size, const Header *header) {
    j_decompress_ptr cinfo = &job->cinfo;
    cinfo->err = lib.std_error(&job->errors);
    job->errors.error_exit = fail;
    job->errors.output_message = keep_quiet;
    int reason = setjmp(job->failed);
    if (reason) {
        lib.destroy_decompress(cinfo);
        return reason;
    }
    lib.CreateDecompress(cinfo, JPEG_LIB_VERSION, sizeof(*cinfo));
    job->source.init_source = do_nothing;
    job->source.fill_input_buffer = next_piece;
    job->source.skip_input_data = skip_bytes;
    job->source.resync_to_restart = lib.resync_to_restart;
    job->source.term_source = do_nothing;
    cinfo->src = &job->source;
    job->piece_end = data;
    job->end = data + size;

    if (header->scans) { /* in several scans, all of which start_decompress reads; counted first, as for Pillow */
        look_at_clock(job);
        int outcome = job->max_scans ? count_scans(header->scans, job->end, job->max_scans) : DONE;
        if (outcome) longjmp(job->failed, outcome);
    }
    while (lib.read_header(cinfo, FALSE) == JPEG_HEADER_TABLES_ONLY) {}
    if (cinfo->num_components != 1 && cinfo->num_components != CHANNELS) fail_with(job, "neither grey nor colour");
    cinfo->out_color_space = cinfo->num_components == 1 ? JCS_GRAYSCALE : JCS_EXT_RGBX;
    if (header->scans) {
        job->progress.progress_monitor = monitor;
        cinfo->progress = &job->progress;
    }
    lib.start_decompress(cinfo);
    if ((int)cinfo->output_width != header->width || (int)cinfo->output_height != header->height)
        fail_with(job, "another size than in its header"); /* for which rows and columns were chosen */
    cinfo->progress = NULL;

    /* libjpeg's own memory, which it frees with the rest, and whose failure is an error like the others. */
    size_t pixel = (size_t)cinfo->output_components;
    job->row = cinfo->mem->alloc_large((j_common_ptr)cinfo, JPOOL_IMAGE, (cinfo->output_width + 1) * pixel + OFF_LINE);
    job->row += OFF_LINE;
    memset(job->row + cinfo->output_width * pixel, 0, pixel);
    if (job->takes_black) {
        job->black = cinfo->mem->alloc_large((j_common_ptr)cinfo, JPOOL_IMAGE, (cinfo->output_width + 1) * pixel);
        memset(job->black, 0, (cinfo->output_width + 1) * pixel);
    }
    if (job->down.count)
        resample_rows(job);
    else
        keep_rows(job);
    job->finishing = 1;
    lib.finish_decompress(cinfo);
    lib.destroy_decompress(cinfo);
    return DONE;
}

/* ---- which files are decoded here ---- */

static int begins(const unsigned char *body, int size, const char *word, int length) {
    return size >= length && memcmp(body, word, (size_t)length) == 0;
}

static int tables_fit(const unsigned char *body, int size) {
    while (size > 0) {
        int table = 1 + (body[0] >> 4 ? 128 : 64);
        if (table > size) return 0;
        body += table;
        size -= table;
    }
    return 1;
}

/* Bytes of memory while decoding, at most: libjpeg's buffers of rows, and of a file in several scans all coefficients.
 * jdmainct.c keeps 8 + 2 groups of rows in the sizes of the components (12 here, for the pointers to them),
 * jdsample.c one group in full width. */
static uint64_t memory_of(const unsigned char *frame, int several_scans) {
    int components = frame[5], height = u16(frame + 1), width = u16(frame + 3), h_max = 1, v_max = 1;
    for (int i = 0; i < components; i++) {
        int h = frame[7 + 3 * i] >> 4, v = frame[7 + 3 * i] & 15;
        h_max = h > h_max ? h : h_max;
        v_max = v > v_max ? v : v_max;
    }
    uint64_t across = ((uint64_t)width + DCTSIZE * h_max - 1) / (DCTSIZE * h_max);
    uint64_t down = ((uint64_t)height + DCTSIZE * v_max - 1) / (DCTSIZE * v_max);
    uint64_t blocks = 0, rows = across * DCTSIZE * h_max * (components * v_max + PIXEL);
    for (int i = 0; i < components; i++) {
        int h = frame[7 + 3 * i] >> 4, v = frame[7 + 3 * i] & 15;
        blocks += (uint64_t)h * v;
        rows += across * DCTSIZE * h * v * 12;
    }
    return rows + (several_scans ? across * down * blocks * DCTSIZE2 * sizeof(JCOEF) : 0);
}

/* Whether the file is one of the plain kinds of which it is known here that Pillow opens them and how: at most
 * MAX_SEGMENTS segments in a chain without gaps up to the first scan, one frame, 8 bits, grey or three components,
 * Huffman codes. All others are left to Pillow. It gets files without metadata (clothing_gateway.image.layout); of the
 * segments that it does get, the rules that raise (JpegImagePlugin.py) are applied here too. */
static int read_plain_header(const unsigned char *data, Py_ssize_t size, Header *header) {
    const unsigned char *frame = NULL;
    int progressive = 0, segments = 0;
    header->exif = header->exif_end = header->exif_segments = 0;
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8) return 0;
    for (Py_ssize_t at = 2; at + 4 <= size;) {
        int marker = data[at + 1], length = u16(data + at + 2);
        const unsigned char *body = data + at + 4;
        if (data[at] != 0xFF || length < 2 || at + 2 + length > size || ++segments > MAX_SEGMENTS) return 0;
        at += 2 + length;
        length -= 2;
        switch (marker) {
            case 0xC0: case 0xC1: case 0xC2: /* frame: baseline, extended, progressive, with Huffman codes */
                if (frame || length < 6 || body[0] != 8 || (body[5] != 1 && body[5] != CHANNELS)) return 0;
                if (length != 6 + 3 * body[5] || !u16(body + 1) || !u16(body + 3)) return 0;
                for (int i = 0; i < body[5]; i++) {
                    int sampling = body[7 + 3 * i];
                    if (!(sampling >> 4) || sampling >> 4 > 4 || !(sampling & 15) || (sampling & 15) > 4) return 0;
                }
                frame = body;
                progressive = marker == 0xC2;
                break;
            case 0xDA: /* scan: here the pixels begin */
                if (!frame || length < 1) return 0;
                header->height = u16(frame + 1);
                header->width = u16(frame + 3);
                header->components = frame[5];
                header->scans = progressive || body[0] < frame[5] ? body - 4 : NULL;
                header->memory = memory_of(frame, header->scans != NULL);
                return 1;
            case 0xDB: /* quantisation tables */
                if (!tables_fit(body, length)) return 0;
                break;
            case 0xE0:
                if (begins(body, length, "JFIF", 4) && length < 7) return 0;
                break;
            case 0xEE:
                if (begins(body, length, "Adobe", 5) && length < 7) return 0;
                break;
            case 0xE1:
                if (begins(body, length, "Exif\0", 6) && !header->exif_segments++) {
                    header->exif = body - data;
                    header->exif_end = at;
                }
                break;
            case 0xC4: case 0xDD: case 0xFE: /* Huffman tables, restart interval, comment */
            case 0xE2: case 0xE3: case 0xE4: case 0xE5: case 0xE6: case 0xE7: /* metadata */
            case 0xE8: case 0xE9: case 0xEA: case 0xEB: case 0xEC: case 0xED: case 0xEF:
                break;
            default:
                return 0;
        }
    }
    return 0;
}

/* ---- what Python sees ---- */

static PyObject *py_bind(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *path;
    if (!PyArg_ParseTuple(args, "O&:bind", PyUnicode_FSConverter, &path)) return NULL;
    void *loaded = dlopen(PyBytes_AsString(path), RTLD_NOW | RTLD_NOLOAD);
    Py_DECREF(path);
    if (!loaded) return PyErr_Format(PyExc_ImportError, "Pillow's module is not loaded: %s", dlerror());
    /* dlsym looks into the module's own libraries, too. The module stays loaded for as long as the process lives. */
#define FIND(name)                                                                                      \
    do {                                                                                                \
        void *found = dlsym(loaded, "jpeg_" #name);                                                     \
        if (!found) return PyErr_Format(PyExc_ImportError, "Pillow's libjpeg shows no jpeg_%s", #name); \
        memcpy(&lib.name, &found, sizeof(found));                                                       \
    } while (0)
    FIND(std_error);
    FIND(CreateDecompress);
    FIND(read_header);
    FIND(start_decompress);
    FIND(read_scanlines);
    FIND(skip_scanlines);
    FIND(finish_decompress);
    FIND(destroy_decompress);
    FIND(resync_to_restart);
#undef FIND
    Job *job = PyMem_Calloc(1, sizeof(*job));
    if (!job) return PyErr_NoMemory();
    job->cinfo.err = lib.std_error(&job->errors);
    job->errors.error_exit = fail;
    if (setjmp(job->failed)) {
        PyErr_Format(PyExc_ImportError, "Pillow's libjpeg has another interface than 6.2: %s", job->message);
        PyMem_Free(job);
        return NULL;
    }
    lib.CreateDecompress(&job->cinfo, JPEG_LIB_VERSION, sizeof(job->cinfo));
    lib.destroy_decompress(&job->cinfo);
    PyMem_Free(job);
    bound = 1;
    Py_RETURN_NONE;
}

static PyObject *py_read_header(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data;
    Header header;
    if (!PyArg_ParseTuple(args, "y*:read_header", &data)) return NULL;
    int plain = read_plain_header(data.buf, data.len, &header);
    PyBuffer_Release(&data);
    if (!plain) Py_RETURN_NONE;
    return Py_BuildValue(
        "(iiiKO(nni))", header.width, header.height, header.components, (unsigned long long)header.memory,
        header.scans ? Py_True : Py_False, header.exif, header.exif_end, header.exif_segments);
}

/* What decode() and resample() begin with: a file that they take, and the limits; NULL with an exception. */
static Job *new_job(const Py_buffer *data, Header *header, int max_scans, PyObject *seconds_object) {
    double seconds = MAX_SECONDS;
    if (seconds_object != Py_None && (seconds = PyFloat_AsDouble(seconds_object), PyErr_Occurred())) return NULL;
    if (!bound) {
        PyErr_SetString(PyExc_RuntimeError, "bind() comes first");
        return NULL;
    }
    if (!read_plain_header(data->buf, data->len, header)) {
        PyErr_SetString(BrokenJpeg, "not a file that read_header() takes");
        return NULL;
    }
    Job *job = PyMem_Calloc(1, sizeof(*job));
    if (!job) {
        PyErr_NoMemory();
        return NULL;
    }
    job->max_scans = max_scans;
    if (seconds < MAX_SECONDS) {
        job->has_deadline = 1;
        job->deadline = now() + (int64_t)(seconds * 1e9);
    }
    return job;
}

/* What they end with: the decoding, and None or its exception. */
static PyObject *finish(Job *job, const Py_buffer *data, const Header *header) {
    int outcome;
    Py_BEGIN_ALLOW_THREADS;
    outcome = run(job, data->buf, (size_t)data->len, header);
    Py_END_ALLOW_THREADS;
    switch (outcome) {
        case DONE: Py_RETURN_NONE;
        case TOO_MANY_SCANS: return PyErr_Format(TooManyScans, "more than %d scans", job->max_scans);
        case TOO_MANY_SEGMENTS: return PyErr_Format(TooManyScans, "more than %d segments", MAX_SCAN_SEGMENTS);
        case OUT_OF_TIME: PyErr_SetString(PyExc_TimeoutError, "the time for decoding is over"); return NULL;
        default: PyErr_SetString(BrokenJpeg, job->message); return NULL;
    }
}

/* An array of int32, each from 0 to ``most``; in order where ``ascending``, but for those that are ``most``. */
static int get_places(PyObject *object, Py_buffer *view, int most, int ascending, int *has_most) {
    if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) < 0) return 0;
    const int32_t *places = view->buf;
    Py_ssize_t count = view->len / (Py_ssize_t)sizeof(*places);
    int before = 0, fits = count > 0 && count < (1 << 24) && !(view->len % (Py_ssize_t)sizeof(*places)) &&
                           !((uintptr_t)places % sizeof(*places));
    for (Py_ssize_t i = 0; fits && i < count; i++) {
        if (places[i] < 0 || places[i] > most || (ascending && places[i] < before)) fits = 0;
        if (places[i] == most)
            *has_most = 1;
        else
            before = places[i];
    }
    if (!fits) PyErr_SetString(PyExc_ValueError, "rows and columns must hold int32 within the photo, rows in order");
    return fits;
}

static PyObject *py_weights(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    Part part;
    int first, kept, span = 0;
    if (!PyArg_ParseTuple(args, "siiiiii:weights", &name, &part.photo, &part.start, &part.there, &part.resized, &first,
                          &kept))
        return NULL;
    const Filter *filter = NULL;
    for (size_t i = 0; i < sizeof(filters) / sizeof(*filters); i++)
        if (!strcmp(filters[i].name, name)) filter = &filters[i];
    if (!filter || part.photo < 1 || part.photo > MAX_SIDE || part.start < 0 || part.there < 1 ||
        part.there > part.photo - part.start || part.resized < 1 || part.resized > MAX_SIDE || first < 0 || kept < 1 ||
        kept > part.resized - first)
        return PyErr_Format(PyExc_ValueError, "no filter, or no part of 1 to %d pixels", MAX_SIDE);
    for (int i = 0; i < kept; i++) {
        const Window window = window_of(filter, &part, first + i);
        if (window.end - window.start > span) span = window.end - window.start;
    }
    PyObject *starts = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizeof(int32_t) * kept);
    PyObject *weights = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizeof(int32_t) * kept * span);
    double *exact = PyMem_Malloc((size_t)span * sizeof(*exact));
    PyObject *result = starts && weights && exact ? Py_BuildValue("(OO)", starts, weights) : PyErr_NoMemory();
    if (result) {
        int32_t *start = (int32_t *)PyBytes_AsString(starts), *weight = (int32_t *)PyBytes_AsString(weights);
        Py_BEGIN_ALLOW_THREADS;
        for (int i = 0; i < kept; i++, weight += span) {
            const Window window = window_of(filter, &part, first + i);
            weigh(filter, part.photo, &window, span, start + i, weight, exact);
        }
        Py_END_ALLOW_THREADS;
    }
    PyMem_Free(exact);
    Py_XDECREF(starts);
    Py_XDECREF(weights);
    return result;
}

/* Whether all results lie within the photo, in order, and no sum of theirs can overflow. */
static int get_spans(Spans *spans, const Py_buffer *starts, const Py_buffer *weights, int there) {
    const Py_ssize_t four = sizeof(int32_t), count = starts->len / four, total = weights->len / four;
    spans->starts = starts->buf;
    spans->weights = weights->buf;
    int fits = count > 0 && count <= MAX_SIDE && total > 0 && total % count == 0 && total / count <= there &&
               starts->len % four == 0 && weights->len % four == 0 && !((uintptr_t)starts->buf % sizeof(int32_t)) &&
               !((uintptr_t)weights->buf % sizeof(int32_t));
    if (fits) {
        spans->count = (int)count;
        spans->span = (int)(total / count);
    }
    for (Py_ssize_t i = 0, before = 0; fits && i < count; before = spans->starts[i++])
        fits = spans->starts[i] >= before && spans->starts[i] <= there - spans->span;
    for (Py_ssize_t i = 0; fits && i < count; i++) {
        int64_t sum = 0;
        for (Py_ssize_t j = 0; j < spans->span; j++) sum += llabs(spans->weights[i * spans->span + j]);
        fits = sum <= MAX_WEIGHTS;
    }
    if (!fits) PyErr_SetString(PyExc_ValueError, "starts and weights must hold int32 within the photo, in order");
    return fits;
}

static PyObject *py_resample(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data = {0}, out = {0}, buffers[4] = {0};
    PyObject *out_object, *seconds_object = Py_None, *result = NULL;
    Job *job = NULL;
    Header header;
    int down_first, max_scans = 0;
    if (!PyArg_ParseTuple(args, "y*O(y*y*)(y*y*)p|iO:resample", &data, &out_object, &buffers[0], &buffers[1],
                          &buffers[2], &buffers[3], &down_first, &max_scans, &seconds_object))
        return NULL;
    if (!(job = new_job(&data, &header, max_scans, seconds_object))) goto done;
    if (PyObject_GetBuffer(out_object, &out, PyBUF_STRIDED) < 0) goto done;
    if (!get_spans(&job->down, &buffers[0], &buffers[1], header.height)) goto done;
    if (!get_spans(&job->across, &buffers[2], &buffers[3], header.width)) goto done;
    if (out.ndim != 3 || out.itemsize != 1 || out.shape[0] != job->down.count || out.shape[1] != job->across.count ||
        out.shape[2] != CHANNELS) {
        PyErr_SetString(PyExc_ValueError, "out must hold rows x columns x 3 numbers");
        goto done;
    }
    job->down_first = down_first;
    job->out = out.buf;
    memcpy(job->strides, out.strides, sizeof(job->strides));
    job->height = (int)out.shape[0];
    job->width = (int)out.shape[1];
    result = finish(job, &data, &header);
done:
    PyMem_Free(job);
    if (out.obj) PyBuffer_Release(&out);
    for (int i = 0; i < 4; i++) PyBuffer_Release(&buffers[i]);
    PyBuffer_Release(&data);
    return result;
}

static PyObject *py_decode(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data = {0}, out = {0}, table = {0}, rows = {0}, columns = {0};
    PyObject *out_object, *rows_object, *columns_object, *table_object, *result = NULL;
    Job *job = NULL;
    Header header;
    int max_scans = 0, takes_black = 0, ignored = 0;
    PyObject *seconds_object = Py_None;
    if (!PyArg_ParseTuple(args, "y*OOOO|iO:decode", &data, &out_object, &rows_object, &columns_object, &table_object,
                          &max_scans, &seconds_object))
        return NULL;
    if (!(job = new_job(&data, &header, max_scans, seconds_object))) goto done;
    if (table_object != Py_None && PyObject_GetBuffer(table_object, &table, PyBUF_SIMPLE) < 0) goto done;
    if (table.buf && (table.len != 256 * CHANNELS * sizeof(float) || (uintptr_t)table.buf % sizeof(float))) {
        PyErr_SetString(PyExc_ValueError, "table must hold 256 x 3 float32");
        goto done;
    }
    if (out_object != Py_None) {
        if (PyObject_GetBuffer(out_object, &out, PyBUF_STRIDED) < 0) goto done;
        if (!get_places(rows_object, &rows, header.height, 1, &takes_black)) goto done;
        if (!get_places(columns_object, &columns, header.width, 0, &ignored)) goto done;
        const Py_ssize_t one = table.buf ? sizeof(float) : 1, four = sizeof(int32_t);
        int fits = out.ndim == 3 && out.itemsize == one && out.shape[0] == rows.len / four &&
                   out.shape[1] == columns.len / four && out.shape[2] == CHANNELS && !((uintptr_t)out.buf % one);
        for (int i = 0; fits && i < 3; i++) fits = out.strides[i] % one == 0;
        if (!fits) {
            PyErr_SetString(PyExc_ValueError, "out must hold rows x columns x 3 numbers");
            goto done;
        }
    }
    job->out = out.buf;
    job->table = table.buf;
    if (out.buf) {
        memcpy(job->strides, out.strides, sizeof(job->strides));
        job->rows = rows.buf;
        job->columns = columns.buf;
        job->height = (int)out.shape[0];
        job->width = (int)out.shape[1];
        job->takes_black = takes_black;
    }
    result = finish(job, &data, &header);
done:
    PyMem_Free(job);
    if (out.obj) PyBuffer_Release(&out);
    if (rows.obj) PyBuffer_Release(&rows);
    if (columns.obj) PyBuffer_Release(&columns);
    if (table.obj) PyBuffer_Release(&table);
    PyBuffer_Release(&data);
    return result;
}

static PyMethodDef methods[] = {
    {"bind", py_bind, METH_VARARGS, "Find libjpeg's functions through a loaded module's path, or raise ImportError."},
    {"read_header", py_read_header, METH_VARARGS,
     "(width, height, components, bytes of memory, in several scans, (EXIF's start, end, segments)) of a JPEG that "
     "decode() takes, or None."},
    {"decode", py_decode, METH_VARARGS,
     "decode(data, out or None, rows, columns, table or None, max_scans=0, seconds=None)"},
    {"weights", py_weights, METH_VARARGS,
     "weights(filter, photo, start, there, resized, first, kept): (starts, weights), int32 each, of Pillow's resize."},
    {"resample", py_resample, METH_VARARGS,
     "resample(data, out, (row starts, weights), (column starts, weights), down_first, max_scans=0, seconds=None)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "clothing_jpeg._core", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__core(void) {
    PyObject *core = PyModule_Create(&module);
    if (!core) return NULL;
    BrokenJpeg = PyErr_NewExceptionWithDoc(
        "clothing_jpeg.BrokenJpeg", "A damaged file, which Pillow's decoder refuses too; the text is libjpeg's.", PyExc_ValueError, NULL);
    TooManyScans = PyErr_NewExceptionWithDoc(
        "clothing_jpeg.TooManyScans", "A file with more scans, or segments between them, than allowed.", PyExc_ValueError, NULL);
    if (!BrokenJpeg || PyModule_AddObjectRef(core, "BrokenJpeg", BrokenJpeg) < 0 || !TooManyScans ||
        PyModule_AddObjectRef(core, "TooManyScans", TooManyScans) < 0) {
        Py_XDECREF(BrokenJpeg);
        Py_DECREF(core);
        return NULL;
    }
    return core;
}
