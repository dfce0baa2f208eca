/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From the core to agents: messages, and status words that hold the same whether messages get through or not.
 *
 * Whatever changes a task's state is told under the lock of its runqueue, so the messages of one task come in order,
 * numbered without a gap. A full ring loses none in silence: the channel counts it and says that it overflowed, and
 * the agent reads the status words.
 */
#ifndef GHOSTBPF_MESSAGES_BPF_H
#define GHOSTBPF_MESSAGES_BPF_H

#include "sched.bpf.h"

/*
 * A task in task storage, as far as agents are concerned. word, and all of that status word but its state and times, is
 * written under lock: a task leaves its enclave, and the next one takes its word, while others tell of it.
 */
struct agent_task {
	u64 gtid;
	u64 runtime_ns;
	u64 word; /* 0: the agent does not know it */
	u64 seq; /* of its last message */
	u64 counted; /* 1 + the channel whose load it is part of; 0: none's, for it is blocked */
	u32 channel;
	u32 knows; /* enum task_state that the agent was last told: TASK_WAITING or TASK_BLOCKED */
	u32 yielded;
	struct bpf_spin_lock lock;
};

BPF_TASK_STORAGE(agent_tasks, struct agent_task);
BPF_F_TABLE("array", u32, struct status_word, status_words, MAX_WORDS, BPF_F_MMAPABLE);
BPF_QUEUE(free_words, u32, MAX_WORDS);
BPF_F_TABLE("array", u32, struct channel, channels, MAX_CPUS, BPF_F_MMAPABLE);
BPF_ARRAY(word_allocator, struct word_allocator, 1);
BPF_RINGBUF_OUTPUT(ring, 1);
BPF_ARRAY_OF_MAPS(rings, "ring", MAX_CPUS);

static struct channel *channel_at(u32 number)
{
	return channels.lookup(&number);
}

/* An agent that does not begin to read what asks for a decision, or does not come to a decision, is silent. */
static bool is_timed_out(struct channel *ch)
{
	u64 asked = ch->oldest_pending_ns, heartbeat = ch->heartbeat_ns;
	bool timed_out = (ch->asked != ch->answered && ns_since(asked > heartbeat ? asked : heartbeat) > ch->timeout_ns) ||
		      (ch->state == AGENT_TURNS && ns_since(heartbeat) > ch->timeout_ns);

	if (timed_out && !ch->timed_out)
		ch->timeouts++;
	ch->timed_out = timed_out;
	return timed_out;
}

static bool has_agent(struct channel *ch)
{
	return ch->tid && !is_timed_out(ch);
}

/* Channel *number if there is an agent behind it; else the enclave's. */
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

static struct channel *channel_of(struct agent_task *a, u32 *number)
{
	*number = a->channel;
	return channel_or_0(number);
}

/*
 * Does a message ask for a decision? A task that blocks, ends or leaves asks only the agent of a single CPU, which has
 * nothing to run now: the agent is to be awake when the next task wakes there. With the fast path that CPU takes the next
 * task without its agent, and an agent that runs would only be in the way.
 */
static bool asks(struct channel *ch, u32 number, struct message *m)
{
	return (number && !ch->fastpath) || m->type < MSG_TASK_BLOCKED || m->type > MSG_TASK_DEPARTED;
}

/*
 * An agent that rests is woken once. The message's place in the ring is taken before the look at the agent's state, which
 * the agent changes before its own look at the ring: one of the two sees the other. The atomic add between them is the
 * full barrier that this takes.
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
	if (asks(ch, number, m)) {
		if (ch->asked == ch->answered)
			ch->oldest_pending_ns = m->at_ns;
		count_up(&ch->asked);
		if (!ch->spins && ch->state == AGENT_RESTS && replace(&ch->state, AGENT_RESTS, AGENT_WOKEN))
			flags = BPF_RB_FORCE_WAKEUP;
	}
	bpf_ringbuf_submit(place, flags);
}

static struct status_word *word_at(u32 number)
{
	return number ? status_words.lookup(&number) : NULL;
}

/* Have there ever been more tasks than words? */
static bool are_words_scarce(void)
{
	u32 zero = 0;
	struct word_allocator *c = word_allocator.lookup(&zero);

	return c && c->used >= MAX_WORDS - 1;
}

/* A free status word's number; 0 if there is none. */
static u32 take_word(void)
{
	u32 zero = 0, number = 0;
	struct word_allocator *c = word_allocator.lookup(&zero);

	if (!free_words.pop(&number))
		return number;
	if (!c || c->used >= MAX_WORDS - 1)
		return 0;
	number = count_up(&c->used);
	return number < MAX_WORDS ? number : 0;
}

static void give_word_back(u32 number)
{
	struct status_word *w = word_at(number);

	if (w) {
		w->state = TASK_BLOCKED; /* a free word may never have been a task's */
		w->gtid = 0;
	}
	free_words.push(&number, BPF_ANY);
}

static void add_load(u32 counted, s64 more)
{
	struct channel *ch = counted ? channel_at(counted - 1) : NULL;

	if (ch)
		__sync_fetch_and_add(&ch->load, more);
}

/* Each exchange of the mark settles what it said before: however many are done at once, no load is counted twice. */
static void count_load(struct agent_task *a, u64 now)
{
	u64 before;

	if (a->counted == now)
		return;
	before = exchange(&a->counted, now);
	add_load(before, -1);
	add_load(now, 1);
}

static u64 load_of(struct status_word *w)
{
	return w->state == TASK_BLOCKED ? 0 : 1 + w->channel;
}

static void set_state(struct agent_task *a, struct status_word *w, u32 state)
{
	w->state = state;
	w->since_ns = bpf_ktime_get_ns();
	count_load(a, load_of(w));
}

static u64 next_gtid(struct task_struct *p)
{
	struct enclave *e = enclave_of(ENCLAVE);

	return (e ? count_up(&e->gtids) : 0) << 32 | (u32)p->pid;
}

static struct agent_task *agent_task_of(struct task_struct *p, u64 flags)
{
	return agent_tasks.task_storage_get(p, 0, flags);
}

/* p has no status word any more; which one it had, 0 if none: of all that call this at once, one learns it. */
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

/*
 * Take the number of p's next message, and note in its status word what the message says. False where the word is not
 * p's any more.
 */
static bool number_message(struct agent_task *a, struct status_word *w, struct message *m, u32 channel, u64 *load)
{
	bool own;

	bpf_spin_lock(&a->lock);
	own = a->gtid && w->gtid == a->gtid;
	if (own) {
		m->gtid = a->gtid;
		m->word = a->word;
		w->seq = m->seq = ++a->seq;
		w->channel = channel;
		w->cpu = m->cpu;
		w->boosted = m->flags & MSG_BOOSTED;
		*load = load_of(w);
	}
	bpf_spin_unlock(&a->lock);
	return own;
}

static void tell(struct task_struct *p, struct agent_task *a, struct status_word *w, u16 type, u16 flags)
{
	struct message m = {};
	u64 load = 0;
	u32 number;

	channel_of(a, &number);
	m.cpu = scx_bpf_task_cpu(p);
	m.type = type;
	m.flags = flags;
	if (!number_message(a, w, &m, number, &load))
		return;
	count_load(a, load);
	m.runtime_ns = a->runtime_ns;
	m.at_ns = bpf_ktime_get_ns();
	m.allowed = w->allowed;
	m.tgid = w->tgid;
	m.weight = w->weight;
	post(number, &m);
}

/* p is no longer the enclave's; the word goes to another task. */
static void tell_gone(struct task_struct *p, struct agent_task *a, u16 type)
{
	struct status_word *w = word_at(a->word);
	u32 number;

	if (!w)
		return;
	set_state(a, w, TASK_BLOCKED);
	tell(p, a, w, type, 0);
	number = release_word(a, w);
	a->knows = TASK_BLOCKED;
	a->channel = 0;
	if (number)
		give_word_back(number);
}

/*
 * p's status word, a new one if it has none; NULL where all are in use. An agent that comes gives words to all tasks that
 * wait, just as one of them may get its own.
 *
 * exec() by a thread that is not the leader gives it the leader's pid. Agents name a task by a gtid, which has its pid:
 * such a task departs, and is a new one.
 */
static struct status_word *word_of(struct task_struct *p, struct agent_task *a)
{
	struct status_word *w = word_at(a->word);
	bool fresh;
	u32 number;

	if (w && (u32)a->gtid == (u32)p->pid)
		return w;
	if (w)
		tell_gone(p, a, MSG_TASK_DEPARTED);
	number = take_word();
	w = word_at(number);
	if (!w)
		return NULL;
	w->runtime_ns = w->seq = w->channel = w->boosted = 0;
	w->state = TASK_WAITING;
	w->since_ns = bpf_ktime_get_ns();
	w->allowed = p->cpus_ptr->bits[0];
	w->weight = p->scx.weight;
	w->cpu = scx_bpf_task_cpu(p);
	w->tgid = p->tgid;
	w->gtid = next_gtid(p);
	bpf_spin_lock(&a->lock);
	fresh = !a->word;
	if (fresh) {
		a->word = number;
		a->gtid = w->gtid;
		a->runtime_ns = a->seq = 0;
	}
	bpf_spin_unlock(&a->lock);
	if (fresh)
		return w;
	give_word_back(number);
	return word_at(a->word);
}

static void tell_cpu(s32 cpu, u16 type)
{
	struct message m = {};
	u32 number;

	channel_of_cpu(cpu, &number);
	m.at_ns = bpf_ktime_get_ns();
	m.type = type;
	m.cpu = cpu;
	post(number, &m);
}

/* p waits for a CPU, and nobody but the agent is to find it one. False where there is no status word left. */
static bool tell_waits(struct task_struct *p, struct agent_task *a, u64 enq_flags, bool boosted)
{
	struct status_word *w = word_of(p, a);
	u16 type = MSG_TASK_PREEMPT;

	if (!w)
		return false;
	if (!w->seq)
		type = MSG_TASK_NEW;
	else if (enq_flags & SCX_ENQ_WAKEUP)
		type = MSG_TASK_WAKEUP;
	else if (a->yielded)
		type = MSG_TASK_YIELD;
	a->yielded = 0;
	a->knows = TASK_WAITING;
	w->allowed = p->cpus_ptr->bits[0];
	set_state(a, w, TASK_WAITING);
	tell(p, a, w, type, boosted ? MSG_BOOSTED : 0);
	return true;
}

/* p waits, and the core itself sees to it. */
static void note_waits(struct task_struct *p, struct agent_task *a)
{
	struct status_word *w = a->word ? word_of(p, a) : NULL;

	a->yielded = 0;
	if (w)
		set_state(a, w, TASK_WAITING);
}

static void tell_blocked(struct task_struct *p, struct agent_task *a)
{
	struct status_word *w = word_at(a->word);

	if (!w)
		return;
	set_state(a, w, TASK_BLOCKED);
	if (a->knows == TASK_BLOCKED)
		return;
	a->knows = TASK_BLOCKED;
	tell(p, a, w, MSG_TASK_BLOCKED, 0);
}

#endif
