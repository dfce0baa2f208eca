/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Loops of any length that the verifier accepts. break and return may leave them.
 *
 * A counter that such a loop changes must be in memory (volatile, or in a map): the verifier follows each value of a
 * counter in a register separately. If it is compared with a constant, it must be a struct counter.
 */
#ifndef GHOSTBPF_ITERATE_BPF_H
#define GHOSTBPF_ITERATE_BPF_H

/* A number that the verifier does not follow: on the stack it knows the values that begin an 8-byte slot, and zeros. */
struct counter {
	u32 unused;
	volatile u32 n;
} __attribute__((aligned(8)));

/* A struct counter, at first 0. The empty asm keeps LLVM from moving it to where the verifier follows it. */
#define COUNTER(name)            \
	struct counter name = {}; \
	asm volatile("" : : "r"(&name) : "memory")

static void end_numbers(struct bpf_iter_num *numbers)
{
	bpf_iter_num_destroy(numbers);
}

/* for (s32 i = first; i < end; i++) */
#define for_each_number(i, first, end)                                                                          \
	for (struct bpf_iter_num __numbers __attribute__((cleanup(end_numbers))),                               \
	     *__all = (bpf_iter_num_new(&__numbers, first, end), &__numbers);                                   \
	     __all; __all = NULL)                                                                               \
		for (s32 i, *__next; (__next = bpf_iter_num_next(&__numbers)) && (i = *__next, true);)

#ifdef HAVE_bpf_iter_scx_dsq_new
static void end_waiting(struct bpf_iter_scx_dsq *waiting)
{
	bpf_iter_scx_dsq_destroy(waiting);
}

/* Each task p on queue `dsq`, by iterator `it`; in reverse order with SCX_DSQ_ITER_REV in flags. */
#define for_each_waiting(it, p, dsq, flags)                                                                     \
	for (struct bpf_iter_scx_dsq it __attribute__((cleanup(end_waiting))),                                  \
	     *__all = (bpf_iter_scx_dsq_new(&it, dsq, flags), &it);                                             \
	     __all; __all = NULL)                                                                               \
		for (struct task_struct *p; (p = bpf_iter_scx_dsq_next(&it));)
#endif

#endif
