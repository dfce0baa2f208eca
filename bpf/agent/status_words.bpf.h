/* SPDX-License-Identifier: GPL-2.0-only */
/* Status words: the current state of each task that the agent knows, right even if messages are lost. */
#ifndef GHOSTBPF_STATUS_WORDS_BPF_H
#define GHOSTBPF_STATUS_WORDS_BPF_H

#include "abi.h"
#include "channels.bpf.h"
#include "core/bits.bpf.h"
#if WEIGHS_CGROUPS
#include "core/cgroup_weight.bpf.h"
#endif
#include "core/state.bpf.h"
#include "sched.bpf.h"

/*
 * What task storage holds of a task for its agent. `lock` protects `word` and all members of that status word but its
 * state and times: a task may leave its enclave, and the next one take its word, while other CPUs send its messages.
 */
struct agent_task {
	u64 gtid;
	u64 runtime_ns;
	u64 word; /* number of its status word; 0: the agent does not know the task */
	u64 seq; /* that of its last message */
	u64 load_channel; /* 1 + the channel whose load includes the task; 0: none, the task is blocked */
	u32 channel;
	u32 told_state; /* TASK_WAITING or TASK_BLOCKED, as in the last message of a change */
	u32 left_by; /* it left its CPU other than by preemption: MSG_TASK_YIELD, or MSG_TASK_WAKEUP if it was throttled */
	struct bpf_spin_lock lock;
};

BPF_TASK_STORAGE(agent_tasks, struct agent_task);
BPF_F_TABLE("array", u32, struct status_word, status_words, MAX_WORDS, BPF_F_MMAPABLE);
#if NR_CPU_WORDS > 1
BPF_F_TABLE("array", u32, struct allowed_rest, allowed_rest, MAX_WORDS, BPF_F_MMAPABLE);
#endif
#if WEIGHS_CGROUPS
BPF_F_TABLE("array", u32, struct task_cgroup, task_cgroups, MAX_WORDS, BPF_F_MMAPABLE);
#endif
BPF_QUEUE(free_words, u32, MAX_WORDS);
BPF_ARRAY(word_allocator, struct word_allocator, 1);

static struct agent_task *agent_task_of(struct task_struct *p, u64 flags)
{
	return agent_tasks.task_storage_get(p, 0, flags);
}

static struct channel *channel_of(struct agent_task *a, u32 *number)
{
	*number = a->channel;
	return channel_or_0(number);
}

static struct status_word *word_at(u32 number)
{
	return number ? status_words.lookup(&number) : NULL;
}

/* Store a task's affinity in its status word, `number`. */
static void note_allowed(struct status_word *w, u32 number, const struct cpumask *allowed)
{
#if NR_CPU_WORDS > 1
	struct allowed_rest *rest = allowed_rest.lookup(&number);

	if (rest) {
#pragma unroll
		for (u32 i = 1; i < NR_CPU_WORDS; i++)
			rest->words[i - 1] = allowed->bits[i];
	}
#endif
	w->allowed = allowed->bits[0];
}

/*
 * Store p's cgroup beside its status word, `number`, for the agent of a policy that weighs cgroups. It follows a change
 * of the cgroup or its weight when p waits next.
 */
static void note_cgroup(struct task_struct *p, u32 number)
{
#if WEIGHS_CGROUPS
	struct task_cgroup *own = task_cgroups.lookup(&number);
	struct enclave *e = enclave_of(ENCLAVE);
	u64 weight = 0;

	if (!own || !e)
		return;
	own->cgroup = e->unlimited ? 0 : weighted_group(p, &weight);
	own->weight = weight;
#endif
}

/* The status word gets another task, whose cgroup note_cgroup() stores later. */
static void forget_cgroup(u32 number)
{
#if WEIGHS_CGROUPS
	struct task_cgroup *own = task_cgroups.lookup(&number);

	if (own)
		own->cgroup = 0;
#endif
}

/* Return true if all status words have been in use, so that some tasks may have had none. */
static bool are_words_scarce(void)
{
	u32 zero = 0;
	struct word_allocator *allocator = word_allocator.lookup(&zero);

	return allocator && allocator->used >= MAX_WORDS - 1;
}

/* Allocate a status word; return its number, or 0 if none is free. */
static u32 take_word(void)
{
	u32 zero = 0, number = 0;
	struct word_allocator *allocator = word_allocator.lookup(&zero);

	if (!free_words.pop(&number))
		return number;
	if (!allocator || allocator->used >= MAX_WORDS - 1)
		return 0;
	number = count_up(&allocator->used);
	return number < MAX_WORDS ? number : 0;
}

static void free_word(u32 number)
{
	struct status_word *w = word_at(number);

	if (w) {
		w->state = TASK_BLOCKED; /* word_of() may free a word that no task got; it has TASK_WAITING */
		w->gtid = 0;
	}
	free_words.push(&number, BPF_ANY);
}

static void add_load(u32 load_channel, s64 change)
{
	struct channel *ch = load_channel ? channel_at(load_channel - 1) : NULL;

	if (ch)
		__sync_fetch_and_add(&ch->load, change);
}

/* Each exchange settles the load that the old value stood for, so concurrent calls count no load twice. */
static void count_load(struct agent_task *a, u64 now)
{
	u64 before;

	if (a->load_channel == now)
		return;
	before = exchange(&a->load_channel, now);
	add_load(before, -1);
	add_load(now, 1);
}

static u64 load_of(struct status_word *w)
{
	return w->state == TASK_BLOCKED ? 0 : 1 + w->channel;
}

/* Return the time, `now`; CLOCK_MONOTONIC. */
static u64 set_state(struct agent_task *a, struct status_word *w, u32 state, u64 now)
{
	w->state = state;
	w->since_ns = now;
	count_load(a, load_of(w));
	return now;
}

static u64 next_gtid(struct task_struct *p)
{
	struct enclave *e = enclave_of(ENCLAVE);

	return (e ? count_up(&e->gtids) : 0) << 32 | (u32)p->pid;
}

/* Detach a task from its status word. Of concurrent calls, one gets the word's number, the others get 0. */
static u32 release_word(struct agent_task *a, struct status_word *w)
{
	u32 number;

	bpf_spin_lock(&a->lock);
	number = w->gtid == a->gtid ? a->word : 0;
	if (number)
		a->word = a->gtid = w->gtid = 0;
	bpf_spin_unlock(&a->lock);
	return number;
}

#endif
