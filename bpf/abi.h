/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every struct that crosses the kernel line, defined once: bcc includes this file, cffi parses it.
 *
 * So that both can read it: plain C structs of u8…u64, enums, and numeric #defines, nothing else.
 * Each struct's size is a multiple of 8, for user space maps the arrays of them.
 */
#ifndef GHOSTBPF_ABI_H
#define GHOSTBPF_ABI_H

/* Changes whenever a struct here, or what a map of the core holds, changes its meaning. */
#define ABI_VERSION 10

#define MAX_ENCLAVES 64 /* enclave ids run from 1; 0 is "no enclave" */
#define MAX_CPUS 1024
#define CPU_WORDS 16 /* of u64, for MAX_CPUS bits */
#define SLOTS 128 /* two banks of MAX_ENCLAVES */
#define POLICY_NAME_LEN 32

/* Queues (DSQ ids): one for all, one an enclave, two a CPU; see bpf/sched.bpf.h. */
#define FALLBACK_DSQ 1
#define PENDING_DSQS 0x10000
#define CPU_DSQS 0x20000
#define VTIME_DSQS 0x30000

enum enclave_state {
	ENCLAVE_FREE = 0,
	ENCLAVE_ACTIVE = 1,
	ENCLAVE_DYING = 2, /* its tasks are being handed back; the built-in FIFO runs them meanwhile */
};

/* One enclave; user space writes it. */
struct enclave {
	u32 state;
	u32 generation; /* tells this enclave from the ones that had its id before */
	u32 bank; /* which bank of op slots is live: one store replaces a policy */
	u32 uid; /* who made it */
	u64 created_ns; /* CLOCK_BOOTTIME */
	u64 swaps; /* live policy replacements since then */
	char policy[2][32]; /* the name of each bank's policy */
	u64 cpus[16]; /* that run its tasks */
	u64 spinner; /* (1 + CPU) << 32 | tid: that agent spins there, and no task runs there; CPU bits 0: it does not */
	u32 queues[2]; /* does each bank's policy have tasks wait on CPUs' own queues, too? */
	u32 draining; /* the policy before did, and some may wait there still */
	u32 reserved;
	u64 gtids; /* handed out */
	u32 agents[2]; /* does each bank's policy have an agent? */
};

/* One CPU. */
struct cpu {
	u32 enclave; /* whose CPU it is; written by user space */
	u32 running; /* whose task is on it */
	u64 ran_at; /* when that task came on; ns of scx_bpf_now() */
	u64 fallback_at; /* when it last took a task from the fallback queue; CLOCK_MONOTONIC */
	u64 dispatched_at; /* when it last asked for a task; CLOCK_MONOTONIC */
	u64 latched; /* a task may wait on its own queue, CPU_DSQ, where agents put what is to run here; 64 bits for exchange() */
	u32 group_hold; /* that queue is not served just now: a group is being committed */
	u32 agent_must_move; /* a task waits that may run nowhere else: the agent had better spin elsewhere */
	u32 preempted_by_class; /* a higher class has it */
	u32 told_idle; /* since it last ran a task of its enclave, the agent has been told that it idles */
	u32 told_busy; /* the agent has been told that a higher class has it */
	u32 kick; /* TXN_KICK_…: what was just committed to it has it woken, or preempted, once */
	u32 sync_waker_stays; /* the task that is on it does: see task_ctx */
	u32 rescue_in; /* at which dispatch from now its enclave's policy goes before what is latched; 0: at none */
	u64 checked_at; /* when it last looked for tasks that an agent has forgotten; CLOCK_MONOTONIC */
	u64 sync_wake_at; /* when its task last woke another and was about to sleep; ns of scx_bpf_now(), 0: it has not */
	u64 llc[16]; /* the CPUs that share its last-level cache; written by user space */
};

/* What the whole core shares. */
struct core {
	u64 abi_version;
	u64 online[16]; /* the kernel's hotplug callbacks keep it */
	u64 orphaned_queues; /* bit e: enclave e's queue is served by every CPU, since none of its own can */
	u32 default_enclave; /* of a task that nobody put anywhere: 0, or 1 in full mode */
	u32 reserved;
	u64 reenqueue_after; /* until then no local queue is re-enqueued; CLOCK_MONOTONIC */
};

/* A task, in task storage. */
struct task_ctx {
	u32 enclave;
	u32 generation;
	u32 enabled; /* in the ext class now */
	u32 left; /* and enclave with it: enclave tells where it was */
	u64 left_ns; /* of its slice, when a higher class took the CPU from it */
	u64 woke_at_runtime_ns; /* of a CPU's own kernel thread, in full mode */
	u64 latched_at; /* when it was last put on a CPU's own queue to wait there; CLOCK_MONOTONIC */
	u32 committed; /* by an agent */
	u32 sync_waker_stays; /* it last stayed on its CPU when it had woken another and was about to sleep */
	u32 reenqueued; /* times it was re-enqueued since it last ran */
	u32 released_by; /* the process (tgid) of a loader that is about to take it out of the class; 0: none */
	u32 policy; /* SCHED_… that the task had when it joined, to be restored when it is handed back */
	u32 priority; /* and its real-time priority then */
};

/* Per enclave and CPU. Events since the enclave was made; runtime in ns. */
struct counters {
	u64 idle; /* wakeups that found a CPU: an idle one, or their waker's that was about to sleep */
	u64 queued; /* tasks put on a queue */
	u64 switches; /* tasks put on a CPU */
	u64 preempted; /* tasks taken off a CPU by the policy */
	u64 affinity_misses; /* tasks queued elsewhere since their affinity excludes every CPU of the enclave */
	u64 runtime_ns;
};

/* Why the kernel ended the scheduler: scx_exit_info, copied. */
struct exit_record {
	u64 kind; /* enum scx_exit_kind, 0 while it runs */
	u64 regular; /* user space detached it */
	s64 code;
	char reason[128];
	char message[1024];
	char dump[32768];
};

/* Argument of the join program, which leaves the enclave before in it, and of the stray program. */
struct join_args {
	s32 tid;
	u32 enclave;
	u32 generation;
	u32 reserved;
};

/* One record of the tasks iterator: of each task in the ext class, and of each that was there and forks just now. */
struct task_record {
	s32 tid;
	s32 tgid;
	u32 enclave; /* 0: none */
	s32 cpu;
	u32 on_cpu;
	u16 enabled; /* in the ext class now */
	u16 forking; /* it may have a child, or thread, that is not to be seen yet */
	u64 runtime_ns; /* sum_exec_runtime */
	char comm[16];
	u32 elsewhere; /* none of the enclave's CPUs may run it now: it runs outside them */
	u32 policy; /* SCHED_… to be restored when the task is handed back */
	u32 priority;
	u32 reserved;
};

/* A task that left its enclave, and not by a loader's hand. */
struct departure {
	s32 tid;
	s32 tgid;
	char comm[16];
};

#define DEPARTURES_KEPT 8

/* Those of one enclave since it was made; departure n, counted from 0, is at n % DEPARTURES_KEPT. */
struct departures {
	u64 count;
	struct departure last[8];
};

/*
 * Agents. What follows is each enclave's own: maps that are made with its first agent and stay as long as its policy
 * has one. Channel 0 is the enclave's; channel 1 + n is that of CPU n, where each CPU has an agent of its own.
 */
#define MAX_WORDS 32768 /* status words; word 0 is no word */
#define TXNS 64 /* transactions per channel */

enum message_type {
	MSG_TASK_NEW = 1, /* the first of a task: it waits for a CPU; as for WAKEUP, PREEMPT and YIELD */
	MSG_TASK_WAKEUP,
	MSG_TASK_PREEMPT, /* its slice was used up, another class or the agent took the CPU, or it was moved */
	MSG_TASK_YIELD,
	MSG_TASK_BLOCKED, /* for this one and the next two the agent of all CPUs is not woken: they ask for nothing */
	MSG_TASK_DEAD, /* the last of a task: it ended */
	MSG_TASK_DEPARTED, /* the last of a task: it left the enclave */
	MSG_TASK_AFFINITY_CHANGED,
	MSG_TASK_PRIORITY_CHANGED,
	MSG_CPU_IDLE, /* it has nothing to run, and a task waits */
	MSG_CPU_TICK, /* where the agent asked for ticks */
	MSG_CPU_BUSY, /* a higher class takes it; where the policy asked for that, as for the next */
	MSG_CPU_AVAILABLE, /* and gives it back */
};

#define MSG_BOOSTED 1 /* it was interrupted, or its turn is not over: it had better go on soon */

/* From the core to an agent. Of a CPU's message, only cpu, at_ns and type count. */
struct message {
	u64 gtid; /* of a task; never used again in this enclave: count << 32 | tid */
	u64 runtime_ns; /* CPU time since it has a gtid */
	u64 at_ns; /* CLOCK_MONOTONIC */
	u64 allowed; /* the CPUs it may use; bit n is CPU n, for the first 64 */
	u32 seq; /* one more with each message of this task */
	u16 type; /* enum message_type */
	u16 flags; /* MSG_BOOSTED */
	u32 word; /* its status word */
	s32 cpu; /* where it ran last */
	s32 tgid;
	u32 weight; /* 100 is nice 0 */
};

enum task_state {
	TASK_BLOCKED = 0,
	TASK_WAITING = 1, /* for a CPU */
	TASK_ON_CPU = 2,
};

/* What is so about a task right now, whether messages got through or not. */
struct status_word {
	u64 gtid; /* 0: free */
	u64 runtime_ns;
	u64 since_ns; /* when state last changed; CLOCK_MONOTONIC */
	u64 allowed;
	u32 seq; /* of its last message: a transaction that has another is stale */
	u32 state; /* enum task_state */
	u32 channel; /* that gets its messages */
	u32 weight;
	s32 cpu;
	s32 tgid;
	u32 boosted; /* its last message said so */
	u32 reserved;
};

enum agent_state {
	AGENT_RESTS = 0, /* it sleeps until it is woken, or is about to look whether there is anything to read */
	AGENT_WOKEN = 1,
	AGENT_TURNS = 2, /* it reads and decides, and has not come to the end of that turn */
};

/* Between the core and one agent. */
struct channel {
	u64 tid; /* of the agent; 0: none. A new agent stores its own, and the old one leaves */
	u64 heartbeat_ns; /* when the agent last began to read; CLOCK_MONOTONIC */
	u64 state; /* enum agent_state */
	u64 asked; /* messages that ask for a decision */
	u64 answered; /* asked, when the agent last had read all at the end of a turn; the agent writes it */
	u64 oldest_pending_ns; /* when the first of those that it has not read came; CLOCK_MONOTONIC */
	u64 timeout_ns; /* an agent that reads nothing, or does not get to an end, for so long is silent: the core decides */
	u64 timeouts; /* how often it was found silent */
	u64 lost; /* messages that did not fit in */
	u64 load; /* tasks that run or wait, of those whose messages it gets */
	u32 overflowed; /* some since the agent last read all status words */
	u32 fastpath; /* what needs no decision is not asked for */
	u32 ticks; /* the agent wants MSG_CPU_TICK */
	u32 spins; /* the agent needs no waking */
	u32 timed_out; /* it is found to be so now */
	u32 reserved;
	/* What the agent says of itself. */
	u64 messages; /* that it has read */
	u64 committed; /* transactions complete */
	u64 failed; /* other transactions */
	u64 resyncs; /* times it read all status words */
	u64 since_ns; /* when it took over; CLOCK_MONOTONIC */
	u64 turns; /* in which there was something to do */
	u64 busy_ns; /* what those took */
	char policy[32];
	char reason[160]; /* why it ended */
	u64 per_cpu; /* of channel 0: each CPU has an agent of its own, and one without it is the core's */
};

enum txn_state {
	TXN_READY = 0,
	TXN_COMPLETE,
	TXN_STALE, /* there are messages of the task to be read first */
	TXN_NOT_FOUND, /* the task is gone */
	TXN_NOT_RUNNABLE, /* it sleeps */
	TXN_ON_CPU, /* it runs */
	TXN_INVALID_CPU, /* not one of the enclave, or the task may not run there */
	TXN_CPU_OFFLINE,
	TXN_NOT_PERMITTED, /* the task is another enclave's, or the agent has been replaced */
	TXN_POISONED, /* another of its group failed */
};

#define TXN_PREEMPT 1 /* whoever runs there makes way */
#define TXN_HEAD 2 /* before what else waits on that CPU's queue */
#define TXN_KICK_IDLE 1
#define TXN_KICK_PREEMPT 2

/* From an agent to the core: task gtid is to run next on cpu. Without a gtid, cpu is preempted and that is all. */
struct txn {
	u64 gtid;
	u64 slice_ns; /* 0: until it blocks, yields or is preempted */
	u32 seq;
	s32 cpu;
	u32 flags;
	u32 state; /* enum txn_state */
};

/* Argument of the commit program. */
struct commit_args {
	u32 channel;
	u32 count; /* of transactions, from the channel's first on */
	u32 group; /* all of them, or none */
	u32 committed; /* result */
};

/* Argument of the programs by which an agent takes a CPU to spin on (-1: none), and leaves. */
struct agent_args {
	u32 channel;
	s32 cpu;
};

/* Argument of the programs that associate a task with a channel, and that look a departing one up by its tid. */
struct agent_task_args {
	u64 gtid;
	u32 channel;
	u32 reserved;
};

/* Argument of the program by which the agent of a CPU takes over tasks that wait for another's. */
struct take_args {
	u32 channel;
	u32 from; /* channel; 0: any other of a CPU */
	u32 most;
	u32 taken; /* result */
};

/* What an enclave's agents have handed out. */
struct word_allocator {
	u64 used;
};

#endif
