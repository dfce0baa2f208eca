/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The CPUs of an enclave: which run its tasks, which idle, and where a task may go.
 *
 * A CPU is usable for a task if it belongs to the enclave, is online, has no agent spinning on it, and is in the task's
 * affinity.
 */
#ifndef GHOSTBPF_CPUS_BPF_H
#define GHOSTBPF_CPUS_BPF_H

#include "abi.h"
#include "bits.bpf.h"
#include "iterate.bpf.h"
#include "state.bpf.h"

/* The lowest set bit, which is cleared. */
static u32 take_bit(volatile u64 *word)
{
	u64 bits = *word;

	*word = bits & (bits - 1);
	return lowest_bit(bits);
}

/* The word of an enclave's CPUs that round number `round` of a walk from CPU `first` on looks at. */
static u32 word_of_round(u32 round, u32 first)
{
	return (first / 64 + round) % NR_CPU_WORDS;
}

/* What is left to look at in that word: in the last round, the CPUs before `first`. */
static u64 bits_of_round(struct enclave *e, u32 round, u32 first)
{
	u64 word = 0, from_first = ~0ULL << (first & 63);

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (i == word_of_round(round, first))
			word = e->cpus[i];
	return word & (round == 0 ? from_first : round == NR_CPU_WORDS ? ~from_first : ~0ULL);
}

/* A set of up to 64 CPUs has one round, or two. Kernel 6.16 verifies a plain loop with far fewer instructions. */
#if NR_CPU_WORDS == 1
#define for_each_round(round, rounds) for (u32 round = 0; round < (rounds); round++)
#else
#define for_each_round(round, rounds) for_each_number(round, 0, rounds)
#endif

/*
 * Each CPU of an enclave, online or not, from CPU `first` on and in a circle, and its record. Only return leaves the
 * walk: break goes on with the next word.
 */
#define for_each_cpu_from(first, enclave_id, e, cpu, id)                                                        \
	for_each_round(__round, NR_CPU_WORDS + !!((first) & 63))                                                \
		for (volatile u64 __left = bits_of_round(e, __round, first), *__once = &__left; __once;          \
		     __once = NULL)                                                                             \
			for_each_number(__n, 0, 64)                                                             \
				if (!__left)                                                                    \
					break;                                                                  \
				else if (id = word_of_round(__round, first) * 64 + take_bit(&__left),            \
					 !(cpu = cpu_of(id)) || cpu->enclave != (enclave_id))                   \
					continue;                                                               \
				else

/* Each CPU of an enclave, as above. */
#define for_each_cpu_of(enclave_id, e, cpu, id) for_each_cpu_from(0U, enclave_id, e, cpu, id)

/* The CPU on which an agent of e spins; -1 if there is none. */
static s32 spun_cpu(struct enclave *e)
{
	return (s32)(e->spinner >> 32) - 1;
}

/* Word i of the CPUs that run e's tasks. */
static u64 serving(struct enclave *e, struct core *c, u32 i)
{
	u32 spun = spun_cpu(e);

	return e->cpus[i] & c->online[i] & ~(spun / 64 == i ? 1ULL << (spun & 63) : 0);
}

/* Word i of the usable CPUs. */
static u64 usable(struct enclave *e, struct core *c, const struct cpumask *allowed, u32 i)
{
	return serving(e, c, i) & allowed->bits[i];
}

static bool is_any_usable(struct enclave *e, struct core *c, const struct cpumask *allowed)
{
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (usable(e, c, allowed, i))
			return true;
	return false;
}

/* Word i of the CPUs that are usable, or will be as soon as an arbiter gives them to e. */
static u64 reachable(struct enclave *e, struct core *c, const struct cpumask *allowed, u32 i)
{
	return usable(e, c, allowed, i) | (e->reach[i] & c->online[i] & allowed->bits[i]);
}

/* Return true if a task with this affinity may run in e. */
static bool may_run_in(struct enclave *e, struct core *c, const struct cpumask *allowed)
{
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (usable(e, c, allowed, i) || (e->tree && reachable(e, c, allowed, i)))
			return true;
	return false;
}

static bool is_usable(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 cpu)
{
	u64 word = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		if (i == (u32)cpu / 64)
			word = usable(e, c, allowed, i);
	return word >> (cpu & 63) & 1;
}

/* Return true if a task with this affinity may use a CPU that stays online. */
static bool is_any_online(struct core *c, const struct cpumask *allowed)
{
	u64 any = 0;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++)
		any |= c->online[i] & allowed->bits[i];
	return any;
}

/* A usable CPU, or with `reach` one that is at least reachable, busy or not: prev if it is one. -1 if there is none. */
static s32 any_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev, bool reach)
{
	s32 first = -1;

#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 word = reach ? reachable(e, c, allowed, i) : usable(e, c, allowed, i);

		if (i == (u32)prev / 64 && word >> (prev & 63) & 1)
			return prev;
		if (first < 0 && word)
			first = i * 64 + lowest_bit(word);
	}
	return first;
}

static s32 home_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	return any_cpu(e, c, allowed, prev, false);
}

static s32 reachable_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	return any_cpu(e, c, allowed, prev, true);
}

/*
 * A usable idle CPU, in this order of preference: prev, one of an idle core in prev's last-level cache domain, one of
 * an idle core, one in prev's cache domain, any. -1 if none is idle.
 */
static s32 find_idle_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	const struct cpumask *cores, *idle;
	struct cpu *prev_cpu = cpu_of(prev);
	s32 best = -1;
	u32 best_rank = 5;

	if (!prev_cpu)
		return -1;
	cores = scx_bpf_get_idle_smtmask();
	idle = scx_bpf_get_idle_cpumask();
#pragma unroll
	for (u32 i = 0; i < NR_CPU_WORDS; i++) {
		u64 any = usable(e, c, allowed, i) & idle->bits[i], whole = any & cores->bits[i];
		u64 word = i == (u32)prev / 64 ? any & 1ULL << (prev & 63) : 0;
		u32 rank = 0;

		if (!word) { word = whole & prev_cpu->llc[i]; rank = 1; }
		if (!word) { word = whole; rank = 2; }
		if (!word) { word = any & prev_cpu->llc[i]; rank = 3; }
		if (!word) { word = any; rank = 4; }
		if (word && rank < best_rank) {
			best_rank = rank;
			best = i * 64 + lowest_bit(word);
		}
	}
	scx_bpf_put_idle_cpumask(idle);
	scx_bpf_put_idle_cpumask(cores);
	return best;
}

static bool is_idle(s32 cpu)
{
	const struct cpumask *mask = scx_bpf_get_idle_cpumask();
	bool idle = has_bit(mask->bits, cpu);

	scx_bpf_put_idle_cpumask(mask);
	return idle;
}

/* Find an idle CPU and mark it busy, so that no other CPU claims it. -1 also if another CPU claimed it first. */
static s32 claim_idle_cpu(struct enclave *e, struct core *c, const struct cpumask *allowed, s32 prev)
{
	s32 cpu;

	if (is_usable(e, c, allowed, prev) && scx_bpf_test_and_clear_cpu_idle(prev))
		return prev;
	cpu = find_idle_cpu(e, c, allowed, prev);
	return cpu >= 0 && scx_bpf_test_and_clear_cpu_idle(cpu) ? cpu : -1;
}

/* Make an idle CPU of e, or of the root of its tree, ask for a task. Return false if there is none. */
static bool kick_any_idle(struct enclave *e, s32 here)
{
	const struct cpumask *online;
	struct core *c = the_core();
	s32 cpu = -1;

	if (!c)
		return false;
	online = scx_bpf_get_online_cpumask();
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < 2 && e; i++) {
		cpu = claim_idle_cpu(e, c, online, here);
		if (cpu >= 0 || !e->tree)
			break;
		e = enclave_of(e->tree);
	}
	scx_bpf_put_cpumask(online);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	return cpu >= 0;
}

/* A task may wait on the own queue of a CPU that cannot run it: another CPU of e is to look for it. */
static void report_stuck(struct enclave *e)
{
	if (!e->stuck)
		e->stuck = 1;
}

/* A task waits on the own queue of a CPU: if it cannot run there soon, another CPU of e is to look for it. */
static void note_latches(struct enclave *e)
{
	if (!e->latches)
		e->latches = 1;
}

/* Return true if tasks of e may wait on CPUs' own queues. */
static bool has_cpu_queues(struct enclave *e)
{
	return (e->bank & LIVE_BANK ? e->queues[1] : e->queues[0]) || e->draining & DRAINING_QUEUES;
}

/* How many tasks of e wait for any CPU of e, and on the own queues of this one. */
static u32 nr_waiting(u32 id, struct enclave *e, s32 cpu)
{
	u32 waiting = scx_bpf_dsq_nr_queued(PENDING_DSQ(id));

	if (has_cpu_queues(e))
		waiting += scx_bpf_dsq_nr_queued(CPU_DSQ(cpu)) + scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu));
	return waiting;
}

/* Return true if a task of e waits for any CPU of e, or for this one. */
static bool has_waiting_tasks(u32 id, struct enclave *e, s32 cpu)
{
	return scx_bpf_dsq_nr_queued(PENDING_DSQ(id)) || (has_cpu_queues(e) && scx_bpf_dsq_nr_queued(VTIME_DSQ(cpu)));
}

#endif
