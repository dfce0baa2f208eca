/* SPDX-License-Identifier: GPL-2.0-only */
/* Bits in arrays of u64 words, and atomic operations on one word. */
#ifndef GHOSTBPF_BITS_BPF_H
#define GHOSTBPF_BITS_BPF_H

#include "abi.h"

/* How many words of a CPU set are in use: a compile-time define, since fewer words make shorter programs. */
#ifndef NR_CPU_WORDS
#define NR_CPU_WORDS CPU_WORDS
#endif

/*
 * The index of the lowest set bit: the number of ones below it. The count has no branch, because each branch would
 * double the verifier's work. The empty asm hides the purpose from LLVM, which would otherwise read a constant table;
 * bcc cannot place one.
 */
static u32 lowest_bit(u64 word)
{
	u64 below = (word & -word) - 1;

	below -= below >> 1 & 0x5555555555555555ULL;
	asm volatile("" : "+r"(below));
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

/* Return true if bit `number` is set. Unrolled: the verifier refuses a variable index into some of these arrays. */
#define has_bit(words, number)                                                  \
	({                                                                      \
		u64 __word = 0;                                                 \
		_Pragma("unroll") for (u32 __i = 0; __i < NR_CPU_WORDS; __i++)  \
			if (__i == (u32)(number) / 64)                          \
				__word = (words)[__i];                          \
		(bool)(__word >> ((number) & 63) & 1);                          \
	})

static void assign_bit(u64 *word, u32 bit, bool on)
{
	if (on)
		__sync_fetch_and_or(word, 1ULL << bit);
	else
		__sync_fetch_and_and(word, ~(1ULL << bit));
}

/* Store `value` if the word still holds `old`; return true if it did. */
static bool compare_and_swap(u64 *word, u64 old, u64 value)
{
	return __sync_val_compare_and_swap(word, old, value) == old;
}

/* Increment a counter; return its new value. */
static u64 count_up(u64 *counter)
{
	return __sync_fetch_and_add(counter, 1) + 1;
}

/* Store a value; return the old one. A full barrier: later loads are not done before the store is visible. */
#define exchange(word, value) __sync_lock_test_and_set(word, value)

#endif
