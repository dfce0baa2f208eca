/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Channels: a ring of messages per agent, the state that the core shares with it, and its time-out.
 *
 * A full ring drops no message silently: the channel counts it and is marked as overflowed, and the agent then reads
 * all status words.
 */
#ifndef GHOSTBPF_CHANNELS_BPF_H
#define GHOSTBPF_CHANNELS_BPF_H

#include "abi.h"
#include "core/bits.bpf.h"
#include "core/state.bpf.h"

BPF_F_TABLE("array", u32, struct channel, channels, MAX_CHANNELS, BPF_F_MMAPABLE);
BPF_RINGBUF_OUTPUT(ring, 1);
BPF_ARRAY_OF_MAPS(rings, "ring", MAX_CHANNELS);

static struct channel *channel_at(u32 number)
{
	return channels.lookup(&number);
}

/* An agent times out if it does not start to read messages that ask for a decision, or does not end its turn. */
static bool is_timed_out(struct channel *ch, u64 now)
{
	bool is_asked = ch->asked != ch->answered, is_busy = ch->state == AGENT_BUSY;
	u64 pending = ch->oldest_pending_ns, heartbeat = ch->heartbeat_ns;
	bool timed_out = (is_asked || is_busy) && elapsed(heartbeat, now) > ch->timeout_ns &&
			 (is_busy || elapsed(pending, now) > ch->timeout_ns);

	if (timed_out == ch->timed_out)
		return timed_out;
	if (timed_out)
		ch->timeouts++;
	ch->timed_out = timed_out;
	return timed_out;
}

static bool has_agent(struct channel *ch, u64 now)
{
	return ch->tid && !is_timed_out(ch, now);
}

/* Return true if the agent decides about everything that uses this channel. */
static bool is_delegated(struct channel *ch, u64 now)
{
	return has_agent(ch, now) && !ch->fastpath;
}

/* Channel *number if it has an agent; else the enclave's, and *number is 0. */
static struct channel *channel_or_0(u32 *number)
{
	struct channel *ch = channel_at(*number);

	if (ch && ch->tid)
		return ch;
	*number = 0;
	return channel_at(0);
}

static struct channel *channel_of_cpu(s32 cpu, u32 *number)
{
	*number = 1 + cpu;
	return channel_or_0(number);
}

/* The CPU is offline, or held by a class other than its agent's. */
static bool is_lost(struct cpu *cpu, s32 id)
{
	struct core *c = the_core();
	struct channel *own;

	if (cpu->preempted_by_class) {
		own = channel_at(1 + id);
		if (!own || !own->tid)
			return true;
	}
	return c && !has_bit(c->online, id);
}

/*
 * Return true if a message asks for a decision. BLOCKED, DEAD and DEPARTED do not: if another task waits for the CPU,
 * MSG_CPU_IDLE follows.
 */
static bool asks(struct message *m)
{
	return m->type < MSG_TASK_BLOCKED || m->type > MSG_TASK_DEPARTED;
}

/*
 * Return true if an agent begins a turn after this, and reads the state of CPUs in it, as struct cpu tells. The atomic
 * operation is a full barrier: the turn sees what this CPU has stored there.
 */
static bool will_read_cpus(struct channel *ch)
{
	return ch->reads_cpus && compare_and_swap(&ch->state, AGENT_WOKEN, AGENT_WOKEN);
}

/*
 * Send a message; wake an idle agent once. The core reserves the message's place in the ring, then reads the agent's
 * state. The agent writes its state, then checks the ring. So at least one of them sees the other's write. The atomic
 * add in between is the full barrier that this takes.
 */
static void post(u32 number, struct message *m)
{
	struct channel *ch = channel_at(number);
	void *ring = rings.lookup(&number);
	struct message *place;
	u64 flags = BPF_RB_NO_WAKEUP;

	if (!ch || !ch->tid)
		return;
	place = ring ? bpf_ringbuf_reserve(ring, sizeof(*m), 0) : NULL;
	if (!place) {
		__sync_fetch_and_add(&ch->lost, 1);
		ch->overflowed = 1;
		return;
	}
	*place = *m;
	if (asks(m)) {
		if (ch->asked == ch->answered)
			ch->oldest_pending_ns = m->at_ns;
		count_up(&ch->asked);
		if (!ch->spins && ch->state == AGENT_IDLE && compare_and_swap(&ch->state, AGENT_IDLE, AGENT_WOKEN))
			flags = BPF_RB_FORCE_WAKEUP;
	}
	bpf_ringbuf_submit(place, flags);
}

#endif
