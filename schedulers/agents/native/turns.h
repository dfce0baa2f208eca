/* SPDX-License-Identifier: Apache-2.0 */
/* What the turns of an agent consist of: turns.c, and its parts read.c, commit.c and assign.c. */
#ifndef GHOSTBPF_TURNS_H
#define GHOSTBPF_TURNS_H

#include "native.h"

#define CALLBACKS 16

/* Numbers of bpf/abi.h, given by the Python code in this order. */
struct numbers {
	long new, last_waiting, task_blocked, dead, departed; /* enum message_type */
	long boosted; /* MSG_BOOSTED */
	long blocked, waiting, on_cpu, latched; /* states of a task */
	long complete, txn_on_cpu, not_permitted; /* enum txn_state */
	long idle, busy; /* enum agent_state */
	long cpu_idle, cpus_changed; /* the first message type about a CPU, and the last of all */
	long cpus; /* that a message can name */
};

/* struct message of bpf/abi.h; the Python code compares its layout. */
struct message {
	u64 gtid, runtime_ns, at_ns, allowed;
	u32 seq;
	uint16_t type, flags;
	u32 word;
	s32 cpu, tgid;
	u32 weight;
};

/* struct txn. */
struct txn {
	u64 gtid, slice_ns;
	u32 seq;
	s32 cpu;
	u32 flags, state;
};

/* task, cpu, slice_ns, flags */
#define TXN_FIELDS 4

/* struct commit_args. */
struct commit_args {
	u32 channel, count, group, committed;
};

/* A gtid as a Python object. */
struct gtid {
	u64 value;
	PyObject *object;
};

#define RECENT_GTIDS 256

struct turns {
	PyObject_HEAD
	struct numbers numbers;
	union {
		struct {
			/* Of the channel's record. */
			struct column tid, heartbeat, state, asked, answered, messages, committed, failed, turns, busy_ns;
			struct column consumed, produced; /* positions in the ring */
			struct column gtids; /* of the status words */
			struct column overflowed; /* of the channel's record */
			struct column states, channels; /* of the status words */
			struct column allowed_rest; /* the words of all status words in a row; empty if there are none */
			struct column data; /* of the ring */
			struct column txns;
		};
		struct column columns[19];
	};
	int ring_fd, commit_fd;
	u32 channel, batch;
	u64 own_tid, pause_ns, recall_ns;
	int rounds, spins, fastpath;
	struct gtid recent[RECENT_GTIDS]; /* of messages: the same object is found in a dict without a comparison */
	union {
		struct {
			PyObject *agent, *tasks, *refusals, *refused, *transaction;
			/* Of the policy. */
			PyObject *policy, *task_class, *schedule, *enqueue, *affinity_changed;
			PyObject *callbacks[CALLBACKS]; /* by type of message; None: nothing to call */
		};
		PyObject *references[10 + CALLBACKS];
	};
};

/* What became of a list of transactions; is_on_cpu: a task of one ran already. */
struct outcome {
	Py_ssize_t completed, failed;
	bool is_on_cpu;
};

/* A Transaction of these fields; those that are NULL are 0. */
PyObject *make_transaction(PyTypeObject *type, PyObject *const fields[TXN_FIELDS]);
/* Read all messages; how many, or -1 with an exception. */
Py_ssize_t turns_read(struct turns *turns);
/* Commit a list of transactions, and append their states to results, a list or NULL; false with an exception. */
bool turns_commit(struct turns *turns, PyObject *list, bool group, struct outcome *outcome, PyObject *results);
/* Whether task still waits by its status word; if not, its state is no longer that of a waiting task. */
bool turns_waits(struct turns *turns, struct task *task);

/* assign(queue, flags, with_busy, slice_ns, near, taken, otherwise): see the Python method. */
PyObject *turns_assign(PyObject *self, PyObject *const *args, Py_ssize_t count);
/* match(queue, flags, busy, slice_ns, siblings): see the Python method. */
PyObject *turns_match(PyObject *self, PyObject *const *args, Py_ssize_t count);

/* A look-up in the dict of refused tasks costs something: mostly, it is empty. */
static inline bool has_refusals(struct turns *turns)
{
	return PyDict_Size(turns->refused) > 0;
}

/* Call a function or a method, and drop its result; false with an exception. */
static inline bool call(PyObject *callable)
{
	PyObject *result = PyObject_CallNoArgs(callable);

	Py_XDECREF(result);
	return result;
}

static inline bool call_method(PyObject *object, const char *name)
{
	PyObject *result = PyObject_CallMethod(object, name, NULL);

	Py_XDECREF(result);
	return result;
}

static inline bool call_with(PyObject *callable, PyObject *argument)
{
	PyObject *result = PyObject_CallFunctionObjArgs(callable, argument, NULL);

	Py_XDECREF(result);
	return result;
}

#endif
