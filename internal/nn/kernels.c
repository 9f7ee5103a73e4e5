#include "kernels.h"
#include <math.h>
#include <string.h>

#pragma GCC optimize("no-math-errno", "no-trapping-math")

#if defined(__x86_64__) && defined(__GLIBC__)
#define WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDE
#endif

WIDE void nn_axpy(long n, float a, const float *restrict x, float *restrict y) {
	for (long i = 0; i < n; i++) y[i] += a * x[i];
}

WIDE void nn_relu_back(long n, const float *restrict y, const float *restrict dy, float *restrict dx) {
	for (long i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] : 0;
}

// exp by 2^k·e^r with |r| <= ln2/2 and the polynomial of Cephes' expf: 2 units in the last place. NaN stays.
static inline __attribute__((always_inline)) float exp1(float x) {
	float c = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
	float k = __builtin_floorf(c * 1.44269504f + 0.5f);
	float r = c - k * 0.693359375f + k * 2.12194440e-4f;
	float p = 1.9875691500e-4f;
	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = p * r * r + r + 1.0f;
	union { int32_t i; float f; } two = {((int32_t)k + 127) << 23};
	float e = p * two.f;
	return x < -87.0f ? 0.0f : x != x ? x : e;
}

WIDE void nn_exp(long n, float shift, const float *restrict x, float *restrict y) {
	for (long i = 0; i < n; i++) y[i] = exp1(x[i] - shift);
}

// tanh by exp away from zero and by Cephes' odd polynomial near it, where the difference would cancel.
static inline __attribute__((always_inline)) float tanh1(float x) {
	float a = __builtin_fabsf(x);
	float far = 1.0f - 2.0f / (exp1(2.0f * a) + 1.0f);
	far = __builtin_copysignf(far, x);
	float s = x * x;
	float p = -5.70498872745e-3f;
	p = p * s + 2.06390887954e-2f;
	p = p * s - 5.37397155531e-2f;
	p = p * s + 1.33314422036e-1f;
	p = p * s - 3.33332819422e-1f;
	float near = p * s * x + x;
	return a < 0.625f ? near : far;
}

static inline __attribute__((always_inline)) float sigmoid1(float x) {
	float e = exp1(-__builtin_fabsf(x));
	float r = 1.0f / (1.0f + e);
	return x >= 0 ? r : x < 0 ? e * r : x;
}

WIDE void nn_tanh(long n, const float *restrict x, float *restrict y) {
	for (long i = 0; i < n; i++) y[i] = tanh1(x[i]);
}

WIDE void nn_sigmoid(long n, const float *restrict x, float *restrict y) {
	for (long i = 0; i < n; i++) y[i] = sigmoid1(x[i]);
}

WIDE void nn_gate(long n, long h, const float *restrict x, float *restrict t, float *restrict s, float *restrict y) {
	for (long i = 0; i < n; i++) {
		const float *a = x + 2 * i * h, *b = a + h;
		for (long k = 0; k < h; k++) {
			float u = tanh1(a[k]), v = sigmoid1(b[k]);
			t[i * h + k] = u;
			s[i * h + k] = v;
			y[i * h + k] = u * v;
		}
	}
}

WIDE void nn_gate_back(long n, long h, const float *restrict t, const float *restrict s, const float *restrict dy, float *restrict dx) {
	for (long i = 0; i < n; i++) {
		float *a = dx + 2 * i * h, *b = a + h;
		for (long k = 0; k < h; k++) {
			float u = t[i * h + k], v = s[i * h + k], g = dy[i * h + k];
			a[k] = g * v * (1 - u * u);
			b[k] = g * u * v * (1 - v);
		}
	}
}

// Sums of columns: 64 rows in float, then into double.
WIDE void nn_column_sums(long rows, long cols, const float *restrict x, double *restrict sum) {
	float part[512];
	for (long from = 0; from < cols; from += 512) {
		long w = cols - from < 512 ? cols - from : 512;
		for (long r0 = 0; r0 < rows; r0 += 64) {
			long r1 = r0 + 64 < rows ? r0 + 64 : rows;
			memset(part, 0, sizeof part);
			for (long r = r0; r < r1; r++) {
				const float *row = x + r * cols + from;
				for (long c = 0; c < w; c++) part[c] += row[c];
			}
			for (long c = 0; c < w; c++) sum[from + c] += part[c];
		}
	}
}

WIDE void nn_column_squares(long rows, long cols, const float *restrict x, const float *restrict mean, double *restrict sum) {
	float part[512];
	for (long from = 0; from < cols; from += 512) {
		long w = cols - from < 512 ? cols - from : 512;
		const float *m = mean + from;
		for (long r0 = 0; r0 < rows; r0 += 64) {
			long r1 = r0 + 64 < rows ? r0 + 64 : rows;
			memset(part, 0, sizeof part);
			for (long r = r0; r < r1; r++) {
				const float *row = x + r * cols + from;
				for (long c = 0; c < w; c++) {
					float d = row[c] - m[c];
					part[c] += d * d;
				}
			}
			for (long c = 0; c < w; c++) sum[from + c] += part[c];
		}
	}
}

WIDE void nn_norm(long rows, long cols, const float *restrict x, const float *restrict a, const float *restrict b,
	const float *restrict residual, int relu, float *restrict y) {
	float floor = relu ? 0.0f : -INFINITY;
	for (long r = 0; r < rows; r++) {
		const float *xr = x + r * cols;
		float *yr = y + r * cols;
		if (residual) {
			const float *zr = residual + r * cols;
			for (long c = 0; c < cols; c++) {
				float v = xr[c] * a[c] + b[c] + zr[c];
				yr[c] = v < floor ? floor : v; // NaN stays
			}
		} else {
			for (long c = 0; c < cols; c++) {
				float v = xr[c] * a[c] + b[c];
				yr[c] = v < floor ? floor : v;
			}
		}
	}
}

WIDE void nn_norm_back_sums(long rows, long cols, const float *restrict x, const float *restrict mean, const float *restrict inv,
	const float *restrict y, const float *restrict dy, int relu, double *restrict db, double *restrict dg) {
	float pb[512], pg[512];
	for (long from = 0; from < cols; from += 512) {
		long w = cols - from < 512 ? cols - from : 512;
		const float *m = mean + from, *s = inv + from;
		for (long r0 = 0; r0 < rows; r0 += 64) {
			long r1 = r0 + 64 < rows ? r0 + 64 : rows;
			memset(pb, 0, sizeof pb);
			memset(pg, 0, sizeof pg);
			for (long r = r0; r < r1; r++) {
				const float *xr = x + r * cols + from, *dr = dy + r * cols + from;
				if (relu) {
					const float *yr = y + r * cols + from;
					for (long c = 0; c < w; c++) {
						float d = yr[c] > 0 ? dr[c] : 0;
						pb[c] += d;
						pg[c] += d * (xr[c] - m[c]) * s[c];
					}
				} else {
					for (long c = 0; c < w; c++) {
						pb[c] += dr[c];
						pg[c] += dr[c] * (xr[c] - m[c]) * s[c];
					}
				}
			}
			for (long c = 0; c < w; c++) {
				db[from + c] += pb[c];
				dg[from + c] += pg[c];
			}
		}
	}
}

// dx = p·d + q·x + r, where d is dy behind the ReLU, which is also the residual's gradient.
WIDE void nn_norm_back(long rows, long cols, const float *restrict x, const float *restrict p, const float *restrict q, const float *restrict r,
	const float *restrict y, const float *restrict dy, int relu, float *restrict dx, float *restrict dresidual) {
	for (long i = 0; i < rows; i++) {
		const float *xr = x + i * cols, *dr = dy + i * cols;
		if (dresidual) {
			float *zr = dresidual + i * cols;
			if (relu) {
				const float *yr = y + i * cols;
				for (long c = 0; c < cols; c++) zr[c] = yr[c] > 0 ? dr[c] : 0;
			} else {
				memcpy(zr, dr, cols * sizeof(float));
			}
		}
		if (dx) {
			float *or = dx + i * cols;
			if (relu) {
				const float *yr = y + i * cols;
				for (long c = 0; c < cols; c++) {
					float d = yr[c] > 0 ? dr[c] : 0;
					or[c] = p[c] * d + q[c] * xr[c] + r[c];
				}
			} else {
				for (long c = 0; c < cols; c++) or[c] = p[c] * dr[c] + q[c] * xr[c] + r[c];
			}
		}
	}
}

void nn_gather(long n, long cols, const int32_t *restrict at, const float *restrict x, float *restrict y) {
	for (long i = 0; i < n; i++) memcpy(y + i * cols, x + (long)at[i] * cols, cols * sizeof(float));
}

WIDE void nn_scatter(long n, long cols, const int32_t *restrict at, const float *restrict x, float *restrict y) {
	for (long i = 0; i < n; i++) {
		const float *xr = x + i * cols;
		float *yr = y + (long)at[i] * cols;
		for (long c = 0; c < cols; c++) yr[c] += xr[c];
	}
}

WIDE void nn_adam(long n, float lr, float b1, float b2, float c1, float c2, float eps, float decay,
	const float *restrict g, float *restrict m, float *restrict v, float *restrict p) {
	for (long i = 0; i < n; i++) {
		m[i] += (1 - b1) * (g[i] - m[i]);
		v[i] += (1 - b2) * (g[i] * g[i] - v[i]);
		p[i] = p[i] * decay - lr * (m[i] * c1) / (sqrtf(v[i] * c2) + eps);
	}
}

WIDE double nn_dot(long n, const float *restrict x, const float *restrict y) {
	double sum = 0;
	for (long i = 0; i < n; i += 4096) {
		float part[16] = {0};
		long end = i + 4096 < n ? i + 4096 : n, j = i;
		for (; j + 16 <= end; j += 16)
			for (int k = 0; k < 16; k++) part[k] += x[j + k] * y[j + k];
		float rest = 0;
		for (; j < end; j++) rest += x[j] * y[j];
		for (int k = 0; k < 16; k++) sum += part[k];
		sum += rest;
	}
	return sum;
}

// A number for every place of a matrix: Wellons' hash (lowbias32) of its row and then of its column.
static inline __attribute__((always_inline)) uint32_t mix(uint32_t x) {
	x ^= x >> 16;
	x *= 0x7feb352dU;
	x ^= x >> 15;
	x *= 0x846ca68bU;
	x ^= x >> 16;
	return x;
}

WIDE void nn_drop(long rows, long cols, const int32_t *at, uint32_t seed, uint32_t below, float scale, int relu,
	const float *restrict x, float *restrict y) {
	float floor = relu ? 0.0f : -INFINITY;
	for (long r = 0; r < rows; r++) {
		uint32_t h = mix(seed ^ mix(at ? (uint32_t)at[r] : (uint32_t)r));
		const float *xr = x + r * cols;
		float *yr = y + r * cols;
		for (uint32_t c = 0; c < (uint32_t)cols; c++) {
			float v = xr[c] < floor ? 0.0f : xr[c] * scale; // NaN stays
			yr[c] = mix(h + c * 0x9e3779b9U) < below ? 0.0f : v;
		}
	}
}

WIDE void nn_scaled_where(long n, float scale, const float *restrict y, const float *restrict dy, float *restrict dx) {
	for (long i = 0; i < n; i++) dx[i] = y[i] > 0 ? dy[i] * scale : 0.0f;
}

WIDE void nn_depthwise(long h, long w, long ch, long kh, long kw, int flip, const float *restrict x, const float *restrict k, float *restrict y) {
	for (long i = 0; i < h; i++) for (long j = 0; j < w; j++) {
		float *yr = y + (i * w + j) * ch;
		memset(yr, 0, ch * sizeof *yr);
		for (long a = 0; a < kh; a++) {
			long u = i + a - kh / 2;
			if (u < 0 || u >= h) continue;
			for (long b = 0; b < kw; b++) {
				long v = j + b - kw / 2;
				if (v < 0 || v >= w) continue;
				const float *xr = x + (u * w + v) * ch;
				const float *kr = k + (flip ? (kh - 1 - a) * kw + kw - 1 - b : a * kw + b) * ch;
				for (long c = 0; c < ch; c++) yr[c] += xr[c] * kr[c];
			}
		}
	}
}

WIDE void nn_depthwise_back(long h, long w, long ch, long kh, long kw, const float *restrict x, const float *restrict dy, float *restrict dk) {
	memset(dk, 0, kh * kw * ch * sizeof *dk);
	for (long i = 0; i < h; i++) for (long j = 0; j < w; j++) {
		const float *g = dy + (i * w + j) * ch;
		for (long a = 0; a < kh; a++) {
			long u = i + a - kh / 2;
			if (u < 0 || u >= h) continue;
			for (long b = 0; b < kw; b++) {
				long v = j + b - kw / 2;
				if (v < 0 || v >= w) continue;
				const float *xr = x + (u * w + v) * ch;
				float *kr = dk + (a * kw + b) * ch;
				for (long c = 0; c < ch; c++) kr[c] += g[c] * xr[c];
			}
		}
	}
}

WIDE int nn_finite(long n, const float *restrict x) {
	uint32_t bad = 0;
	for (long i = 0; i < n; i++) {
		union { float f; uint32_t u; } v = {x[i]};
		bad |= (v.u & 0x7f800000U) == 0x7f800000U;
	}
	return !bad;
}

WIDE void nn_sgd(long n, float lr, float momentum, float decay, float scale, const float *restrict g, float *restrict v, float *restrict p) {
	for (long i = 0; i < n; i++) {
		v[i] = momentum * v[i] + scale * (g[i] + decay * p[i]);
		p[i] -= lr * v[i];
	}
}
