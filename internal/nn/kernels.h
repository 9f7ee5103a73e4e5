// Loops over float32 that the compiler turns into vector code for the processor it finds. The plain Go
// beside each call is what they are held to.
#ifndef COVERSLIP_NN_KERNELS_H
#define COVERSLIP_NN_KERNELS_H
#include <stdint.h>

void nn_axpy(long n, float a, const float *x, float *y);
void nn_relu_back(long n, const float *y, const float *dy, float *dx);
void nn_tanh(long n, const float *x, float *y);
void nn_sigmoid(long n, const float *x, float *y);
void nn_exp(long n, float shift, const float *x, float *y);
void nn_column_sums(long rows, long cols, const float *x, double *sum);
void nn_column_squares(long rows, long cols, const float *x, const float *mean, double *sum);
void nn_norm(long rows, long cols, const float *x, const float *a, const float *b, const float *residual, int relu, float *y);
void nn_norm_back_sums(long rows, long cols, const float *x, const float *mean, const float *inv, const float *y, const float *dy, int relu, double *db, double *dg);
void nn_norm_back(long rows, long cols, const float *x, const float *p, const float *q, const float *r, const float *y, const float *dy, int relu, float *dx, float *dresidual);
void nn_gather(long n, long cols, const int32_t *at, const float *x, float *y);
void nn_scatter(long n, long cols, const int32_t *at, const float *x, float *y);
void nn_adam(long n, float lr, float b1, float b2, float c1, float c2, float eps, float decay, const float *g, float *m, float *v, float *p);
void nn_drop(long rows, long cols, const int32_t *at, uint32_t seed, uint32_t below, float scale, int relu, const float *x, float *y);
void nn_scaled_where(long n, float scale, const float *y, const float *dy, float *dx);
void nn_depthwise(long h, long w, long ch, long kh, long kw, int flip, const float *x, const float *k, float *y);
void nn_depthwise_back(long h, long w, long ch, long kh, long kw, const float *x, const float *dy, float *dk);
int nn_finite(long n, const float *x);
void nn_sgd(long n, float lr, float momentum, float decay, float scale, const float *g, float *v, float *p);
void nn_gate(long n, long h, const float *x, float *t, float *s, float *y);
void nn_gate_back(long n, long h, const float *t, const float *s, const float *dy, float *dx);
double nn_dot(long n, const float *x, const float *y);
#endif
