/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A log-linear histogram: each power of two has SUB buckets of equal width, and below 2 * SUB each value is its own.
 * A bucket's middle differs from the values in it by at most 1 / (2 * SUB), less than 0.05 %. Threads may share one.
 */
#ifndef GHOSTBPF_HISTOGRAM_H
#define GHOSTBPF_HISTOGRAM_H

#include <stdint.h>

#define SUB_BITS 10
#define SUB (1 << SUB_BITS)
#define MAX_BITS 42 /* 73 minutes; longer times count as that */
#define BUCKETS ((MAX_BITS - SUB_BITS + 1) * SUB)

struct histogram {
	/* ``low`` is the bitwise complement of the least value, so that zeroed memory is an empty histogram. */
	uint64_t count, max, low;
	uint64_t buckets[BUCKETS];
};

static inline unsigned bucket_of(uint64_t value)
{
	unsigned shift;

	if (value >= 1ULL << MAX_BITS)
		value = (1ULL << MAX_BITS) - 1;
	if (value < 2 * SUB)
		return value;
	shift = 63 - __builtin_clzll(value) - SUB_BITS;
	return (shift << SUB_BITS) + (value >> shift);
}

static inline double middle_of(unsigned bucket)
{
	unsigned shift;

	if (bucket < 2 * SUB)
		return bucket;
	shift = (bucket >> SUB_BITS) - 1;
	return ((double)(bucket - (shift << SUB_BITS)) + 0.5) * (1ULL << shift) - 0.5;
}

static inline void raise_to(uint64_t *word, uint64_t value)
{
	uint64_t before = __atomic_load_n(word, __ATOMIC_RELAXED);

	while (before < value &&
	       !__atomic_compare_exchange_n(word, &before, value, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static inline void record(struct histogram *h, uint64_t value)
{
	__atomic_fetch_add(&h->buckets[bucket_of(value)], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->count, 1, __ATOMIC_RELAXED);
	raise_to(&h->max, value);
	raise_to(&h->low, ~value);
}

static inline void merge(struct histogram *into, const struct histogram *from)
{
	for (unsigned n = 0; n < BUCKETS; n++)
		into->buckets[n] += from->buckets[n];
	into->count += from->count;
	raise_to(&into->max, from->max);
	raise_to(&into->low, from->low);
}

/* The smallest recorded value such that parts / whole of all values are at or below it (nearest rank). */
static inline double quantile(const struct histogram *h, uint64_t parts, uint64_t whole)
{
	uint64_t rank = (h->count * parts + whole - 1) / whole, seen = 0;

	for (unsigned n = 0; n < BUCKETS; n++) {
		seen += h->buckets[n];
		if (seen && seen >= rank) {
			double middle = middle_of(n);

			return middle > h->max ? h->max : middle < ~h->low ? ~h->low : middle;
		}
	}
	return 0;
}

static inline double percentile(const struct histogram *h, unsigned per_mille)
{
	return quantile(h, per_mille, 1000);
}

#endif
