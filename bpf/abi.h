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
#define ABI_VERSION 19

#define MAX_ENCLAVES 64 /* enclave ids start at 1; 0 is "no enclave" */
#define MAX_CPUS 1024
#define CPU_WORDS 16 /* u64 words in a set of MAX_CPUS CPUs */
#define SLOTS 512 /* by enclave and bank, then the same for enclaves with cgroup limits; see bpf/core/slots.bpf.h */
#define LIMITED_SLOTS 256 /* the first of these */
#define MAX_LIMITS 1024 /* cgroups with a limit; number 0 is not used */
#define POLICY_NAME_LEN 32
#define MAX_LEAVES 8 /* policies in a tree */
#define LEAF_PLACES 16 /* a power of two above MAX_LEAVES */
#define MAX_NODES 32 /* one more than policies and arbiters below a tree's root, or more: a power of two */
#define TREE_DEPTH 3 /* levels below the root */
#define NO_CPU_LIMIT 0x10000

/* Queues (DSQ ids): one for the machine, one per enclave, two per CPU; see bpf/core/state.bpf.h. */
#define FALLBACK_DSQ 1
#define PENDING_DSQS 0x10000
#define CPU_DSQS 0x20000
#define VTIME_DSQS 0x30000
#define THROTTLED_DSQS 0x40000 /* one per enclave */

enum enclave_state {
	ENCLAVE_FREE = 0,
	ENCLAVE_ACTIVE = 1,
	ENCLAVE_DYING = 2, /* its tasks are being handed back; until then the built-in FIFO runs them */
};

/* Bits of enclave.draining: tasks may wait where the policy does not look for them. */
#define DRAINING_QUEUES 1 /* the previous policy used per-CPU queues; they may not be empty yet */
#define DRAINING_RESIZED 2 /* a task that may use none of the CPUs left by a resize may be on the enclave's queue */
#define DRAINING_LOST 4 /* a task may be on no queue, or on one that no CPU of the enclave serves */

/*
 * Bits of enclave.bank; see bpf/core/slots.bpf.h. The upper half of its 64 bits has the same bits for the ops at which
 * tasks are throttled, but LIMITED is set there (THROTTLING) only while a limit may be used up.
 */
#define LIVE_BANK 1 /* the live bank of op slots */
#define LIMITED 256 /* LIMITED_SLOTS: tasks of cgroups with a limit run in it; set and cleared by the core */
#define FELL_BACK 65536 /* the core has replaced the policy in this bank by the built-in FIFO; see struct fallback */
#define THROTTLING 0x10000000000
#define BOTH_HALVES 0x100000001 /* times bits of the lower half: these bits in both */

/* Bits of enclave.lending; see bpf/core/lending.bpf.c. */
#define LENDING_LENDS 1 /* its idle CPUs run tasks of enclaves that borrow */
#define LENDING_BORROWS 2 /* its waiting tasks run on idle CPUs of enclaves that lend */
#define LENDING_AT_TICK 4 /* it gets a lent CPU back at the next tick; without this bit, at once */

/* One enclave; user space writes it, except for a resize. */
struct enclave {
	u32 state; /* enum enclave_state */
	u32 generation; /* distinguishes this enclave from earlier ones with its id */
	u64 bank; /* LIVE_BANK, LIMITED, FELL_BACK, THROTTLING; one store replaces a policy */
	u32 uid; /* the user that made it */
	u32 unlimited; /* the limits of cgroups do not apply */
	u64 created_ns; /* CLOCK_BOOTTIME */
	u64 swaps; /* live policy replacements since then */
	char policy[2][32]; /* the name of each bank's policy */
	u64 cpus[16]; /* the CPUs that run its tasks */
	u64 spinner; /* (1 + CPU) << 32 | tid of an agent that spins on that CPU, which runs no task; CPU bits 0: none */
	u32 queues[2]; /* 1: this bank's policy uses CPUs' own queues */
	u32 draining; /* DRAINING_… */
	u32 lending; /* LENDING_… */
	u64 gtids; /* number of gtids issued */
	u64 stuck; /* a task may wait on the own queue of a CPU that cannot run it, since that CPU is offline or taken */
	u64 latches; /* a task may wait on the own queue of a CPU */
	u32 agents[2]; /* 1: this bank's policy has an agent */
	u64 runnable_timeout_ns; /* how long the policy may let a runnable task wait; 0: the core does not look */
	u64 policy_since_ns; /* when the live policy became live; CLOCK_MONOTONIC */
	/* Trees of policies; see bpf/core/hierarchy.bpf.c. */
	u32 tree; /* the tree that it belongs to, by the enclave that is the tree's root; 0: none */
	u32 leaf; /* 1 + its number among the tree's leaves; 0: it is the root */
	u64 reach[16]; /* the CPUs that the tree's arbiters may give it, besides cpus */
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
	u32 ran; /* the enclave of the task that left it last */
	u64 sync_wake_at; /* when the task on it last made a sync wakeup; ns of scx_bpf_now(), 0: it has not */
	u64 llc[16]; /* the CPUs that share its last-level cache; written by user space */
	u64 availability; /* bit n: a task in the ext class could have run here at the nth last pulse */
	u64 free_since; /* since when no task in the ext class or a higher one runs on it; ns of scx_bpf_now() */
	u64 lent_counted_at; /* up to when a borrowed turn on it has been counted; ns of scx_bpf_now() */
	/* A CPU of a tree; times of CLOCK_MONOTONIC. */
	u64 holder; /* the enclave that has it, or GRANT_BUSY; 64 bits for compare_and_swap() */
	u64 granted_at; /* when the holder got it */
	u64 turn_until; /* until when no other leaf takes it; 0: one may at any time */
	u64 turn_checked_at; /* when it last looked for tasks of other leaves that starve */
	/* Limits of cgroups; see bpf/core/limited.bpf.h. Times in ns of scx_bpf_now(). */
	u64 limit_group; /* the address of the task group that `limit` belongs to */
	u64 limit_owed_ns; /* run time that has not been charged to `limit` yet */
	u64 limit_settled_at; /* when the run time was last charged, and `limit` looked at */
	u64 limit_since; /* a tick: what the task on it ran until then has been charged */
	u64 bounced_since; /* running_since of a task that leaves at once, since its cgroup is throttled */
	u32 limit; /* that of task_ctx, for tasks of limit_group */
	u32 reserved;
};

/* The core as a whole. */
struct core {
	u64 abi_version;
	u64 online[16]; /* the online CPUs; hotplug callbacks write it */
	u64 orphaned_queues; /* bit e: every CPU serves enclave e's queue, since no CPU of e can; 0: see `leaving` */
	u32 default_enclave; /* the enclave of a task that never joined one: 0, or 1 in full mode */
	u32 leaving; /* 1 + the CPU that goes offline now; 0: none */
	u64 reenqueue_after; /* no local queue is re-enqueued before this time; CLOCK_MONOTONIC */
	u64 pulsed_at; /* when the last pulse looked for tasks that wait too long; CLOCK_MONOTONIC */
	u64 lenders; /* bit e: enclave e lends CPUs; user space writes it, and the next one */
	u64 borrowers; /* bit e: enclave e borrows CPUs */
	u64 keeps_stats; /* the statistics in struct counters are kept */
};

#define GRANT_BUSY 0xffffffff /* cpu.holder while the CPU passes from one enclave to another */

enum arbiter_kind {
	ARBITER_ROCI, /* strict order: the first child that wants a CPU gets it */
	ARBITER_PROV, /* shares by weight, in whole CPUs */
};

/* A leaf, or an arbiter below the root. Node 0 stands for none. */
struct tree_node {
	u64 granted; /* the CPUs that its leaves have */
	u64 max_cpus; /* NO_CPU_LIMIT: no limit */
	u32 weight;
	u32 reserved;
};

/* A leaf of a tree: an enclave. */
struct tree_leaf {
	u32 enclave;
	u32 path[3]; /* the number of each node from the root's child down to the leaf itself; 0: no more */
	char name[32];
	u64 grants; /* how often it got a CPU */
	u64 preemptions; /* how often that CPU was taken from another leaf's task */
	u64 turns; /* how often it got one because its task starved */
	u64 turn_at; /* when it last did; CLOCK_MONOTONIC */
	u64 priority[16]; /* the CPUs that it prefers */
	u64 self_preempts; /* how often a task of it left another CPU for one of those */
	u64 poke_threshold_ns; /* the least time between two tasks that are interrupted for it; 0: none */
	u64 poked_at; /* when one last was; CLOCK_MONOTONIC */
	u64 pokes_held; /* how often poke_threshold_ns forbade it */
};

/* Where the ways from the root to two leaves part. */
struct tree_parting {
	u32 mine; /* the node below that arbiter, on the way to the first leaf */
	u32 theirs; /* on the way to the second */
	u32 kind; /* enum arbiter_kind of the arbiter */
};

/* A tree of policies: its root is the enclave of the same number, which holds the idle CPUs. */
struct tree {
	u32 nr_leaves; /* leaves are in order of precedence; 0: the tree is not complete */
	u32 reserved;
	struct tree_leaf leaves[16]; /* number MAX_LEAVES is the root */
	struct tree_node nodes[32];
	struct tree_parting partings[256]; /* of leaves a and b: a * LEAF_PLACES + b */
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
	/* Limits of cgroups; times in ns of scx_bpf_now(). */
	u64 limit_group; /* the address of the task group that `limit` belongs to */
	u32 limit; /* the number of the first limited cgroup among its cgroup and those above it; 0: none */
	u32 bounced; /* it got a CPU although its cgroup was throttled, and leaves at once */
	u64 waits_since; /* the order of throttled tasks */
	u64 throttled_at; /* when it was put on the queue of throttled tasks */
	u32 preempted; /* 1: its last turn ended while it was runnable */
	u32 reserved;
	u64 waited; /* how long it had waited in its life, less the time when the last part of that began */
};

/* A cgroup with a limit (cpu.max), by number. */
struct cgroup_limit {
	u64 cgroup; /* the inode number of its directory; 0: free */
	u64 quota_ns; /* CPU time per period */
	u64 period_ns;
	u64 burst_ns; /* how much unused quota is kept */
	u64 period_end; /* ns of scx_bpf_now() */
	s64 runtime_ns; /* CPU time left; negative: used in advance */
	u64 throttled_since; /* since when a task waits for CPU time; ns of scx_bpf_now(), 0: none does */
	u64 nr_periods; /* periods in which its tasks ran or waited */
	u64 nr_throttled; /* those at whose end a task waited */
	u64 throttled_ns;
	u64 nr_bursts; /* periods in which more than the quota was used */
	u64 burst_used_ns; /* how much more */
	s64 began_with_ns; /* the CPU time that was left when the period began */
	u64 usage_ns; /* CPU time that was charged to it */
	u64 budget_at; /* which pass over throttled tasks `budget` belongs to */
	u32 budget; /* how many tasks this pass may still release */
	u32 parent; /* the number of the next limited cgroup above it; 0: none */
	u64 until_ns; /* until when its tasks wait, if throttled_since is set; CLOCK_MONOTONIC */
	u64 group; /* the address of its task group */
	u64 ready_at; /* when its tasks may run again, as last noted; ns of scx_bpf_now(), 0: now */
};

/* How long tasks waited for a CPU. */
struct waits {
	s64 sum_ns;
	u64 counts[32]; /* by time_bucket() in bpf/core/stats.bpf.h */
};

/* Per enclave and CPU: numbers of events since the enclave was made. */
struct counters {
	u64 idle; /* wakeups that got a CPU at once: an idle one, or that of a waker about to sleep */
	u64 queued; /* tasks put on a queue */
	u64 switches; /* tasks put on a CPU */
	u64 preempted; /* tasks that the policy took off a CPU */
	u64 affinity_misses; /* tasks queued elsewhere because their affinity excludes every CPU of the enclave */
	u64 runtime_ns;
	u64 lent_ns; /* time that tasks of other enclaves ran on this enclave's CPUs */
	u64 borrowed_ns; /* the part of runtime_ns on CPUs of enclaves that lend */
	u64 borrowings; /* turns of its tasks on such CPUs */
	u64 reclaims; /* lent CPUs that a task of its own took back */
	/* Statistics; see bpf/core/stats.bpf.h. */
	u64 class_preemptions; /* turns that ended with slice left, of a task still runnable: a higher class took the CPU */
	u64 slice_ends; /* turns that ended with no slice left, used up or taken by the policy */
	u64 idle_wait_ns; /* the part of tasks' waits in which the CPU that they then got idled */
	u64 idle_ticks; /* ticks, on a CPU that ran a task, at which another task waited and a CPU idled */
	u64 waiting; /* the sum of the numbers in depths */
	struct waits waits[2]; /* after a wakeup, and after the end of a turn that left the task runnable */
	u64 turns[32]; /* times on a CPU, by time_bucket() */
	u64 depths[16]; /* numbers of waiting tasks at ticks, by the bits that it takes to write them */
};

/* Why the kernel ended the scheduler: a copy of scx_exit_info. */
struct exit_record {
	u64 kind; /* enum scx_exit_kind, 0 while it runs */
	u64 regular; /* user space detached it */
	u64 at_ns; /* CLOCK_BOOTTIME */
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
	u32 state; /* the kernel's TASK_…; 0: it runs or waits for a CPU */
	u64 runs; /* how often it was put on a CPU */
	u64 waited_ns; /* how long it waited for a CPU before these runs */
	u64 waiting_ns; /* how long it has been waiting for a CPU now; 0: it does not */
	u64 migrations; /* how often its CPU changed */
	u64 queue; /* the DSQ that it waits on; 0: none */
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

/* Why the core replaced the policy of an enclave by the built-in FIFO, and how often since the enclave was made. */
struct fallback {
	u64 count;
	u64 at_ns; /* CLOCK_MONOTONIC */
	u64 wait_ns; /* how long the task had been runnable, and not run */
	u64 queue; /* the DSQ that it waited on; 0: none */
	s32 tid;
	s32 tgid;
	s32 task_cpu; /* where it ran last */
	s32 cpu; /* a CPU that it could have used */
	u32 pulses; /* how often the core looked at that CPU during the wait */
	u32 available; /* at how many of these pulses a task in the ext class could have run there */
	s32 running; /* the task on that CPU; 0: the CPU was idle */
	u32 has_agent; /* the policy has an agent */
	char comm[16];
	char running_comm[16];
	char policy[32];
};

/*
 * Agents. Each enclave has its own maps of the structs below, from its first agent on and as long as its policy has
 * one. Channel 0 belongs to the enclave; channel 1 + n belongs to CPU n if each CPU has an agent.
 */
#define MAX_CHANNELS 1025 /* 1 + MAX_CPUS */
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
	u64 allowed; /* the task's affinity: bit n is CPU n, for the first 64; struct allowed_rest has the others */
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

/* Of a task with a status word, the affinity for CPUs from 64 on, only on machines that have such CPUs. */
struct allowed_rest {
	u64 words[15]; /* bit n of word i is CPU 64 * (1 + i) + n */
};

#define CGROUP_WEIGHT_ONE 0x100000 /* the weight of a cgroup with cpu.weight 100 */

/* Of a task with a status word, the cgroup, only for policies that weigh cgroups. */
struct task_cgroup {
	u64 cgroup; /* the inode number of its directory; 0: the root, or no cgroup has a weight of its own */
	u64 weight; /* with those of the cgroups above it */
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
	u32 per_cpu; /* channel 0 only: each CPU has an agent, and the core schedules a CPU that has none */
	u32 reads_cpus; /* each turn reads which CPUs idle: no MSG_CPU_IDLE while the agent is woken for a turn */
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
