/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Each struct that kernel and user space share, defined once: bcc includes this file, cffi parses it.
 *
 * To suit both, the file has plain C structs of u8…u64, enums, and numeric #defines, and nothing else. Each struct's
 * size is a multiple of 8, because user space maps arrays of them.
 */
#ifndef GHOSTBPF_ABI_H
#define GHOSTBPF_ABI_H

/* Changes whenever a struct here, a map of the core, or a pinned program changes its name or meaning. */
#define ABI_VERSION 13

#define MAX_ENCLAVES 64 /* enclave ids start at 1; 0 is "no enclave" */
#define MAX_CPUS 1024
#define CPU_WORDS 16 /* u64 words in a set of MAX_CPUS CPUs */
#define SLOTS 128 /* two banks of MAX_ENCLAVES */
#define POLICY_NAME_LEN 32

/* Queues (DSQ ids): one for the machine, one per enclave, two per CPU; see bpf/core/state.bpf.h. */
#define FALLBACK_DSQ 1
#define PENDING_DSQS 0x10000
#define CPU_DSQS 0x20000
#define VTIME_DSQS 0x30000

enum enclave_state {
	ENCLAVE_FREE = 0,
	ENCLAVE_ACTIVE = 1,
	ENCLAVE_DYING = 2, /* its tasks are being handed back; until then the built-in FIFO runs them */
};

/* Bits of enclave.draining: tasks may wait where the policy does not look for them. */
#define DRAINING_QUEUES 1 /* the previous policy used per-CPU queues; they may not be empty yet */
#define DRAINING_RESIZED 2 /* a task that may use none of the CPUs left by a resize may be on the enclave's queue */

/* One enclave; user space writes it, except for a resize. */
struct enclave {
	u32 state; /* enum enclave_state */
	u32 generation; /* distinguishes this enclave from earlier ones with its id */
	u32 bank; /* the live bank of op slots: one store replaces a policy */
	u32 uid; /* the user that made it */
	u64 created_ns; /* CLOCK_BOOTTIME */
	u64 swaps; /* live policy replacements since then */
	char policy[2][32]; /* the name of each bank's policy */
	u64 cpus[16]; /* the CPUs that run its tasks */
	u64 spinner; /* (1 + CPU) << 32 | tid of an agent that spins on that CPU, which runs no task; CPU bits 0: none */
	u32 queues[2]; /* 1: this bank's policy uses CPUs' own queues */
	u32 draining; /* DRAINING_… */
	u32 reserved;
	u64 gtids; /* number of gtids issued */
	u64 stuck; /* a task may wait on the own queue of a CPU that cannot run it, since that CPU is offline or taken */
	u32 agents[2]; /* 1: this bank's policy has an agent */
};

/* One CPU. */
struct cpu {
	u32 enclave; /* the enclave that owns it; written by user space, and by a resize */
	u32 running; /* the enclave of the task on it */
	u64 running_since; /* when that task came on; ns of scx_bpf_now() */
	u64 fallback_served_at; /* when it last took a task from the fallback queue; CLOCK_MONOTONIC */
	u64 dispatched_at; /* when it last asked for a task; CLOCK_MONOTONIC */
	u64 latched; /* a task may wait on its own queue, CPU_DSQ, to which agents commit; 64 bits for exchange() */
	u32 group_hold; /* the enclave whose agent commits a group: the CPU does not serve that queue; 0: none */
	u32 agent_must_move; /* a task can run only on the agent's CPU: the agent must move */
	u32 preempted_by_class; /* a higher class has the CPU */
	u32 told_idle; /* the agent has got MSG_CPU_IDLE since a task of the enclave last ran here */
	u32 told_busy; /* the agent has got MSG_CPU_BUSY, and no MSG_CPU_AVAILABLE since */
	u32 kick; /* TXN_KICK_…: the kick that the current commit owes this CPU */
	u32 after_sync; /* that of the task on it; see task_ctx */
	u32 rescue_in; /* the number of dispatches until the policy goes before latched tasks; 0: never */
	u64 checked_at; /* when it last looked for tasks that wait too long; CLOCK_MONOTONIC */
	u32 stale_queues; /* another enclave had it; tasks of that one may wait on its own queues */
	u32 reserved;
	u64 sync_wake_at; /* when the task on it last made a sync wakeup; ns of scx_bpf_now(), 0: it has not */
	u64 llc[16]; /* the CPUs that share its last-level cache; written by user space */
};

/* The core as a whole. */
struct core {
	u64 abi_version;
	u64 online[16]; /* the online CPUs; hotplug callbacks write it */
	u64 orphaned_queues; /* bit e: every CPU serves enclave e's queue, since no CPU of e can */
	u32 default_enclave; /* the enclave of a task that never joined one: 0, or 1 in full mode */
	u32 reserved;
	u64 reenqueue_after; /* no local queue is re-enqueued before this time; CLOCK_MONOTONIC */
};

/* How soon a task slept after a sync wakeup. */
enum after_sync {
	SYNC_UNKNOWN, /* not seen yet, or neither at once nor late */
	SYNC_SLEPT, /* at once */
	SYNC_STAYED, /* late, or not at all */
};

/* A task, in task storage. */
struct task_ctx {
	u32 enclave;
	u32 generation;
	u32 enabled; /* in the ext class now */
	u32 departed; /* it left the class, and with it the enclave that `enclave` names */
	u64 slice_left_ns; /* what was left of its slice when a higher class took the CPU */
	u64 woke_at_runtime_ns; /* a per-CPU kernel thread's run time at its last wakeup; full mode only */
	u64 latched_at; /* when it was last put on a CPU's own queue; CLOCK_MONOTONIC */
	u32 committed; /* an agent put it there */
	u32 after_sync; /* enum after_sync: what it did after its last sync wakeup */
	u32 reenqueued; /* times it was re-enqueued since it last ran */
	u32 released_by; /* the process (tgid) of a loader that is about to take it out of the class; 0: none */
	u32 policy; /* SCHED_… before it joined, restored when it is handed back */
	u32 priority; /* its real-time priority before it joined */
};

/* Per enclave and CPU: numbers of events since the enclave was made. */
struct counters {
	u64 idle; /* wakeups that got a CPU at once: an idle one, or that of a waker about to sleep */
	u64 queued; /* tasks put on a queue */
	u64 switches; /* tasks put on a CPU */
	u64 preempted; /* tasks that the policy took off a CPU */
	u64 affinity_misses; /* tasks queued elsewhere because their affinity excludes every CPU of the enclave */
	u64 runtime_ns;
};

/* Why the kernel ended the scheduler: a copy of scx_exit_info. */
struct exit_record {
	u64 kind; /* enum scx_exit_kind, 0 while it runs */
	u64 regular; /* user space detached it */
	s64 code;
	char reason[128];
	char message[1024];
	char dump[32768];
};

/* Argument of call_join (which returns the previous enclave in it), call_release, call_drain and call_set_orphaned. */
struct join_args {
	s32 tid;
	u32 enclave;
	u32 generation;
	u32 reserved;
};

/* Argument of call_resize. */
struct resize_args {
	u32 enclave;
	u32 from; /* the enclave that CPUs are taken from; 0: none */
	u64 cpus[16]; /* all CPUs that `enclave` has afterwards */
};

/* A record of the task iterator, for each task in the ext class and each former one that is forking. */
struct task_record {
	s32 tid;
	s32 tgid;
	u32 enclave; /* 0: none */
	s32 cpu;
	u32 on_cpu;
	u16 enabled; /* in the ext class now */
	u16 forking; /* it may have a new child or thread that the iterator does not see yet */
	u64 runtime_ns; /* sum_exec_runtime */
	char comm[16];
	u32 elsewhere; /* its affinity excludes every CPU of the enclave: it runs outside them */
	u32 policy; /* SCHED_… to restore when the task is handed back */
	u32 priority;
	u32 reserved;
};

/* A task that left its enclave without a loader. */
struct departure {
	s32 tid;
	s32 tgid;
	char comm[16];
};

#define DEPARTURES_KEPT 8

/* The departures of an enclave since it was made; number n, from 0, is at n % DEPARTURES_KEPT. */
struct departures {
	u64 count;
	struct departure last[8];
};

/*
 * Agents. Each enclave has its own maps of the structs below, from its first agent on and as long as its policy has
 * one. Channel 0 belongs to the enclave; channel 1 + n belongs to CPU n if each CPU has an agent.
 */
#define MAX_WORDS 32768 /* status words; number 0 is not used */
#define TXNS 64 /* transactions per channel */

enum message_type {
	MSG_TASK_NEW = 1, /* a task's first message; NEW, WAKEUP, PREEMPT and YIELD mean that it waits for a CPU */
	MSG_TASK_WAKEUP,
	MSG_TASK_PREEMPT, /* its slice was used up, another class or the agent took the CPU, or it was moved */
	MSG_TASK_YIELD,
	MSG_TASK_BLOCKED, /* BLOCKED, DEAD and DEPARTED do not wake a centralized agent */
	MSG_TASK_DEAD, /* a task's last message: it ended */
	MSG_TASK_DEPARTED, /* a task's last message: it left the enclave */
	MSG_TASK_AFFINITY_CHANGED,
	MSG_TASK_PRIORITY_CHANGED,
	MSG_CPU_IDLE, /* the CPU has nothing to run, and a task waits */
	MSG_CPU_TICK, /* sent if channel.ticks is set */
	MSG_CPU_BUSY, /* a higher class takes the CPU; BUSY and AVAILABLE are sent if the policy asks for them */
	MSG_CPU_AVAILABLE, /* the higher class leaves the CPU */
	MSG_CPUS_CHANGED, /* CPUs have come to the enclave, or left it; sent to each of its agents */
};

#define MSG_BOOSTED 1 /* a higher class interrupted the task's turn: run it before others */

/* A message from the core to an agent. A CPU's message uses cpu, at_ns and type alone; MSG_CPUS_CHANGED has no cpu. */
struct message {
	u64 gtid; /* count << 32 | tid; never reused in an enclave */
	u64 runtime_ns; /* CPU time since the task got its gtid */
	u64 at_ns; /* CLOCK_MONOTONIC */
	u64 allowed; /* the task's affinity: bit n is CPU n, for the first 64 */
	u32 seq; /* incremented with each message of the task */
	u16 type; /* enum message_type */
	u16 flags; /* MSG_BOOSTED */
	u32 word; /* the number of the task's status word */
	s32 cpu; /* where the task ran last */
	s32 tgid;
	u32 weight; /* 100 is nice 0 */
};

enum task_state {
	TASK_BLOCKED = 0,
	TASK_WAITING = 1, /* runnable, not on a CPU */
	TASK_ON_CPU = 2,
};

/* The current state of a task; it is right even if messages were lost. */
struct status_word {
	u64 gtid; /* 0: free */
	u64 runtime_ns;
	u64 since_ns; /* when state last changed; CLOCK_MONOTONIC */
	u64 allowed;
	u32 seq; /* that of the task's last message; a transaction with another is stale */
	u32 state; /* enum task_state */
	u32 channel; /* the channel that gets the task's messages */
	u32 weight;
	s32 cpu;
	s32 tgid;
	u32 boosted; /* its last message had MSG_BOOSTED */
	u32 reserved;
};

enum agent_state {
	AGENT_IDLE = 0, /* it sleeps until it is woken, or is about to check the ring once more before it sleeps */
	AGENT_WOKEN = 1,
	AGENT_BUSY = 2, /* it is in a turn: it reads messages and decides */
};

/* The state that the core and one agent share. */
struct channel {
	u64 tid; /* the agent; 0: none. A new agent stores its tid, and the old one leaves */
	u64 heartbeat_ns; /* when the agent last began to read; CLOCK_MONOTONIC */
	u64 state; /* enum agent_state */
	u64 asked; /* number of messages that ask for a decision */
	u64 answered; /* asked, when the agent last had read all messages at the end of a turn; the agent writes it */
	u64 oldest_pending_ns; /* when the oldest of the messages that the agent has not answered came; CLOCK_MONOTONIC */
	u64 timeout_ns; /* the core decides if the agent reads nothing, or does not end its turn, for longer than this */
	u64 timeouts; /* how often the agent timed out */
	u64 lost; /* messages that the full ring could not take */
	u64 load; /* tasks that run or wait, among those that use this channel */
	u32 overflowed; /* messages were lost since the agent last read all status words */
	u32 fastpath; /* BPF runs a task at once if a CPU is idle */
	u32 ticks; /* the agent wants MSG_CPU_TICK */
	u32 spins; /* the agent spins: the core does not wake it */
	u32 timed_out; /* the agent had timed out at the last check */
	u32 confirmed; /* of channel 0: the last take-over is complete; before that, the former agents may return */
	/* Written by the agent about itself. */
	u64 messages; /* messages read */
	u64 committed; /* transactions that completed */
	u64 failed; /* transactions that did not */
	u64 resyncs; /* times it read all status words */
	u64 since_ns; /* when it took over; CLOCK_MONOTONIC */
	u64 turns; /* turns that had something to do */
	u64 busy_ns; /* time spent in those turns */
	char policy[32];
	char reason[160]; /* why it ended */
	u64 per_cpu; /* channel 0 only: each CPU has an agent, and the core schedules a CPU that has none */
};

enum txn_state {
	TXN_READY = 0,
	TXN_COMPLETE,
	TXN_STALE, /* the task has newer messages */
	TXN_NOT_FOUND, /* the task is gone */
	TXN_NOT_RUNNABLE, /* it sleeps */
	TXN_ON_CPU, /* it runs */
	TXN_INVALID_CPU, /* the CPU is not the enclave's, or not in the task's affinity */
	TXN_CPU_OFFLINE,
	TXN_NOT_PERMITTED, /* the task is in another enclave, or the agent has been replaced */
	TXN_POISONED, /* another transaction of its group failed */
};

#define TXN_PREEMPT 1 /* preempt the task that runs there */
#define TXN_HEAD 2 /* insert at the head of the CPU's own queue */
#define TXN_KICK_IDLE 1
#define TXN_KICK_PREEMPT 2

/* A transaction, from an agent to the core: run task gtid next on cpu. With gtid 0, only preempt cpu. */
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
	u32 count; /* number of transactions, from the channel's first on */
	u32 group; /* commit all of them, or none */
	u32 committed; /* result: number of transactions that completed */
};

/* Argument of call_spin (the agent spins on cpu; -1: on none) and call_leave. */
struct agent_args {
	u32 channel;
	s32 cpu;
};

/* Argument of call_associate (the task uses this channel) and call_depart (the task has left the enclave). */
struct agent_task_args {
	u64 gtid;
	u32 channel;
	u32 reserved;
};

/* Argument of call_take: the agent of a CPU takes over tasks that wait for another agent. */
struct take_args {
	u32 channel;
	u32 from; /* the channel to take from; 0: any other CPU's */
	u32 max;
	u32 taken; /* result */
};

/* The status words of an enclave. */
struct word_allocator {
	u64 used; /* words with a number up to this have been in use */
};

#endif
